"""Small data sets in every format that is read, with the same pictures, sounds and texts in them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

WORDS = ("cat", "red dog", "fish")


def picture(number: int, size: int = 8):
    """A picture of random pixels, the same for the same number."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(number: int, size: int = 8) -> bytes:
    out = io.BytesIO()
    picture(number, size).save(out, "png")
    return out.getvalue()


def flac(number: int, num_samples: int = 300) -> bytes:
    out = io.BytesIO()
    samples = np.random.default_rng(number).standard_normal(num_samples) * 0.1
    soundfile.write(out, samples, 8000, format="FLAC")
    return out.getvalue()


def word(number: int) -> str:
    return WORDS[number % len(WORDS)]


def write_parquet(path: Path, columns: dict[str, list], group: int = 4) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def picture_parquet(path: Path, num: int, first: int = 0, group: int = 4) -> Path:
    """`num` pictures with words, in columns "image" and "text"."""
    numbers = range(first, first + num)
    return write_parquet(path, {"image": [png(i) for i in numbers], "text": [word(i) for i in numbers]}, group)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def picture_folder(root: Path, num: int) -> Path:
    """root/cat/0.png, root/red_dog/1.png …"""
    for number in range(num):
        folder = root / word(number).replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number))
    return root


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def pixels(document) -> bytes:
    """What the pictures of a document show."""
    return b"".join(s.content.tobytes() for s in document.segments if s.modality == "image")


def shown(number: int) -> bytes:
    return picture(number).tobytes()
