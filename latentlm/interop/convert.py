"""`latentlm convert`: checkpoints of other projects to ours, and language models back.

Place in the flow: interop, on top of the importers. Each value of `--from` has an importer, imported when it is used.
Weights are streamed: memory holds the model once and one shard of the files. The result is written to a temporary
folder beside the target, which is renamed at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoint import write_config
from ..config import SourceConfig
from ..errors import UserError, notice
from ..weights import FLOATS, new_folder, save_weights
from .checkpoint_files import CheckpointFiles, locate
from .mapping import SHARD_SIZE, matches

if TYPE_CHECKING:
    from ..generation.pipeline import Pipeline
    from ..tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Conversion:
    """What to convert, and options of some formats.

    source      folder, file or hub id
    image_size  width and height of an image tokenizer's pictures, where its files do not say or another is wanted
    calibrate   pictures on which an image tokenizer is calibrated: an embedded source or a JSONL manifest
    tokenizer   a tokenizer.json, or a folder with one, where the checkpoint has none
    shard_size  largest size in bytes of a weights file for `transformers`
    """

    source: str
    image_size: int | None = None
    calibrate: str | None = None
    tokenizer: str | None = None
    shard_size: int = SHARD_SIZE


VIBEVOICE = ("vibevoice", "vibevoice-original")
OPTIONS = {"image_size": ("diffusers-vae",), "calibrate": ("diffusers-vae",), "tokenizer": VIBEVOICE}
"""The formats of each option."""


def convert(what: Conversion, target: str | Path, format: str, to: str = "latentlm") -> None:
    """Convert `what.source`, of `format`, to the new folder `target`, in the format `to` ("latentlm" or "hf-llm").

    Raises UserError, one line, for a target that exists, formats that cannot be combined, options that the format does
    not have, and everything that the importer refuses; then `target` is not written.
    """
    if (format, to) not in CONVERSIONS:
        pairs = ", ".join(f"{a} to {b}" for a, b in CONVERSIONS)
        raise UserError(f"--from {format} --to {to} is not possible; known: {pairs}")
    for name, formats in OPTIONS.items():
        if getattr(what, name) is not None and format not in formats:
            raise UserError(f"--{name.replace('_', '-')} is for --from {formats[0]}, not for {format}")
    with new_folder(Path(target)) as folder:
        CONVERSIONS[format, to](what, folder)


def _unilm(what: Conversion, folder: Path) -> None:
    from . import unilm

    _write_pipeline(unilm.load(what.source, "raw"), folder, what)
    if unilm.has_average(what.source):
        save_weights(folder / "ema.safetensors", unilm.load(what.source, "ema").model.state_dict())


def _hf_llm(what: Conversion, folder: Path) -> None:
    _write_pipeline(_read_hf_llm(what), folder, what)


def _hf_llm_again(what: Conversion, folder: Path) -> None:
    from . import hf_llm

    hf_llm.save(_read_hf_llm(what), folder, shard_size=what.shard_size)


def _export(what: Conversion, folder: Path) -> None:
    from ..generation.pipeline import load
    from . import hf_llm

    hf_llm.save(load(what.source, device="cpu", dtype=torch.float32), folder, shard_size=what.shard_size)


def _read_hf_llm(what: Conversion) -> Pipeline:
    from . import hf_llm

    path = locate(what.source)
    return hf_llm.load(path, dtype=prevailing_dtype(path))


def _vibevoice(what: Conversion, folder: Path) -> None:
    from . import vibevoice

    path = locate(what.source)
    pipeline = vibevoice.load(path, tokenizer=what.tokenizer, dtype=prevailing_dtype(path))
    _write_pipeline(pipeline, folder, what)


def _diffusers_vae(what: Conversion, folder: Path) -> None:
    from . import diffusers_vae

    tokenizer = diffusers_vae.load(what.source, what.image_size)
    if what.calibrate is not None:
        _calibrate(tokenizer, what.calibrate)
    tokenizer.save(folder)


CONVERSIONS: dict[tuple[str, str], Callable[[Conversion, Path], None]] = {
    ("hf-llm", "latentlm"): _hf_llm,
    ("hf-llm", "hf-llm"): _hf_llm_again,
    **{(name, "latentlm"): _vibevoice for name in VIBEVOICE},
    ("unilm", "latentlm"): _unilm,
    ("diffusers-vae", "latentlm"): _diffusers_vae,
    ("latentlm", "hf-llm"): _export,
}


def _write_pipeline(pipeline: Pipeline, folder: Path, what: Conversion) -> None:
    write_config(folder, pipeline.model, pipeline.tokenizers, {"converted_from": what.source})
    save_weights(folder / "model.safetensors", pipeline.model.state_dict())


def prevailing_dtype(path: Path) -> torch.dtype:
    """The dtype that most of the values in the files have; of two with equal shares the wider, bfloat16 before float16.

    A notice tells the user where the files mix dtypes. Quantised dtypes do not count: the importer refuses them.
    """
    from .hf_llm import IGNORE

    files = CheckpointFiles.open(path)
    counts = dict.fromkeys(FLOATS, 0)  # in the order of preference
    for name in files.names:
        dtype = files.dtype(name)
        if dtype in counts and not matches(name, IGNORE):
            counts[dtype] += math.prod(files.shape(name))
    found = {str(dtype).removeprefix("torch."): number for dtype, number in counts.items() if number}
    chosen = max(counts, key=counts.__getitem__)
    if len(found) > 1:
        shares = ", ".join(f"{name} {number:,} values" for name, number in found.items())
        most = str(chosen).removeprefix("torch.")
        notice(f"{path}: the weights mix dtypes ({shares}); the model is written in {most}, which most of them have")
    return chosen


def _calibrate(tokenizer: Tokenizer, name: str) -> None:
    """Calibrate on the pictures of an embedded source or a manifest."""
    from ..data.sources import media

    config = SourceConfig(manifest=name) if name.endswith(".jsonl") else SourceConfig(name=name)
    pictures = media(config, "image", "train")
    size = 8  # pictures in memory at a time
    tokenizer.calibrate(
        tokenizer.batch([pictures[i] for i in range(start, min(start + size, len(pictures)))])
        for start in range(0, len(pictures), size)
    )
