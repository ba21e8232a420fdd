"""Speed and memory with data on disk: encoding a Parquet file, training from its shards and from a million documents.

    python benchmarks/data.py --parquet cifar10-train.parquet --out data.json       about ten minutes on two cores
    python benchmarks/data.py --scale smoke                                         seconds, to check that it runs

A small image tokenizer with random weights (32×32, patch 4: 64 latents of 8 channels) is calibrated and encodes the
pictures. A small model is trained on the shards in its own process. Three figures of that process are measured: seconds
from its start to the end of its first step, peak resident memory, and the share of the time of later steps spent
waiting for batches. The same is done for a synthetic set of a million documents, which repeats those of the first.
Prints a table, and with --out writes JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from figures import Figure, describe, hardware, table, write_json

from latentlm.config import ImageTokenizerConfig, PosteriorConfig, SourceConfig
from latentlm.data import sources
from latentlm.data.encoding.plan import Job
from latentlm.data.encoding.workers import encode
from latentlm.data.readers.files import Location
from latentlm.data.shards import ShardDocuments, array_record, inside, write_index, write_records
from latentlm.tokenizers.image import ImageTokenizer


@dataclass(frozen=True)
class Scale:
    """Sizes of one run of this script."""

    documents: int  # of the synthetic set
    part: int  # documents of a file of it
    steps: int
    calibration: int = 512  # pictures
    width: int = 192
    num_layers: int = 5
    rows: int = 4


SCALES = {
    "full": Scale(documents=1_000_000, part=16_384, steps=40),
    "smoke": Scale(documents=1_000, part=256, steps=3, calibration=32, width=32, num_layers=1, rows=1),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="pictures in a column image, words in a column text")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--processes", type=int, default=2, help="processes that encode")
    parser.add_argument("--folder", type=Path, help="folder for shards and runs (3 GB); default a temporary one")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)  # used by the child process: a recipe and a folder
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.train:
        print(json.dumps(timed_run(*map(Path, options.train))))
        return 0
    scale = SCALES[options.scale]
    machine = hardware()
    print(describe(machine))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.parquet is None and options.scale == "full":
            raise SystemExit("--scale full needs --parquet")
        parquet = options.parquet or _some_pictures(folder / "pictures.parquet", 300)
        figures = list(measure(parquet, folder, scale, options.processes))
    print(table(figures))
    if options.out:
        settings = {name: str(value) for name, value in vars(options).items()}
        write_json(options.out, figures, machine, settings)
    return 0


def measure(parquet: Path, folder: Path, scale: Scale, processes: int) -> Iterator[Figure]:
    config = SourceConfig(path=str(parquet), task="text_to_image")
    make_tokenizer(config, scale.calibration).save(folder / "tokenizer")
    yield encoding(config, folder, processes)
    yield from training("pictures", folder / "shards", folder, scale, startup="<= 10", memory="<= 1.2")
    started = time.perf_counter()
    repeat(folder / "shards", folder / "many", scale.documents, scale.part)
    written = time.perf_counter() - started
    for figure in training("many", folder / "many", folder, scale, startup="<= 15", memory="<= 1.5"):
        figure.detail["seconds_to_write_the_set"] = written
        yield figure


def make_tokenizer(config: SourceConfig, num: int) -> ImageTokenizer:
    """A calibrated tokenizer with random weights: the cost of encoding does not depend on their values."""
    torch.manual_seed(0)
    posterior = PosteriorConfig(kind="sigma", c_sigma=0.2)
    sizes = {"image_size": 32, "patch_size": 4, "latent_dim": 8, "width": 96, "encoder_layers": 3, "decoder_layers": 3}
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**sizes, num_heads=4, posterior=posterior)).eval()
    pictures = sources.media(config, "image")
    chosen = [pictures[i] for i in range(min(num, len(pictures)))]
    tokenizer.calibrate([tokenizer.batch(chosen[start : start + 32]) for start in range(0, len(chosen), 32)])
    return tokenizer


def encoding(config: SourceConfig, folder: Path, processes: int) -> Figure:
    job = Job((config,), {"image": str(folder / "tokenizer")}, str(folder / "shards"))
    started = time.perf_counter()
    summary = encode(job, processes=processes)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in (folder / "shards").iterdir())
    detail = {
        "documents": summary.index.num_documents,
        "seconds": seconds,
        "processes": processes,
        "bytes_per_document": size / summary.index.num_documents,
    }
    rate = (summary.index.num_documents - summary.num_done_before) / seconds
    what = f"encoding {summary.index.num_documents:,} pictures, {processes} processes"
    return Figure("data.encode.rate", what, rate, "documents/s", detail=detail)


def repeat(source: Path, target: Path, num: int, part: int) -> None:
    """Write shards of `num` documents, which repeat those of `source`, in files of `part` documents."""
    found = ShardDocuments(str(source))
    if (target / "index.json").exists():
        return
    target.mkdir()
    location, parts = Location.of(str(target)), []
    records = _records(found)
    for start in range(0, num, part):
        count = min(part, num - start)
        name = f"part-{len(parts):06d}.array_record"
        write_records(inside(location, name), (next(records) for _ in range(count)))
        parts.append((name, count))
    counts = {name: count * num // len(found) for name, count in found.index.num_segments.items()}
    index = found.index.model_copy(update={"num_documents": num, "parts": parts, "num_segments": counts, "plan": {}})
    write_index(location, index, np.resize(found.most_positions(), num))


def _records(found: ShardDocuments) -> Iterator[bytes]:
    while True:
        for name, _ in found.index.parts:
            yield from array_record().ArrayRecordReader(inside(found.folder, name).path).read_all()


def training(name: str, shards: Path, folder: Path, scale: Scale, *, startup: str, memory: str) -> Iterator[Figure]:
    """Figures of a training run in its own process."""
    recipe = {
        "kind": "latentlm",
        "tokenizers": {"image": str(folder / "tokenizer")},
        "model": {
            "transformer": {"width": scale.width, "num_layers": scale.num_layers, "num_heads": 4},
            "head": {"num_layers": 3},
        },
        "data": {"sequence_length": 320, "rows": scale.rows, "sources": [{"shards": str(shards)}]},
        "training": {"steps": scale.steps, "log_every": 10, "save_every": scale.steps},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, __file__, "--train", str(path), str(folder / f"run-{name}-{time.time_ns()}")]
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"training failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    num = f"{ShardDocuments(str(shards)).index.num_documents:,} documents"
    seconds = found["first_step"] - started
    yield Figure(f"data.{name}.startup", f"{num}: start to the end of the first step", seconds, "s", startup, found)
    yield Figure(f"data.{name}.memory", f"{num}: peak resident memory", found["peak_bytes"] / 1e9, "GB", memory)
    yield Figure(
        f"data.{name}.wait", f"{num}: share of a step spent waiting for batches", 100 * found["wait"], "%", "<= 3"
    )


def timed_run(recipe: Path, folder: Path) -> dict[str, Any]:
    """Train in this process; returns the end of the first step, the share of later steps spent waiting, peak memory."""
    from latentlm.config import load_recipe
    from latentlm.training import run

    steps: list[tuple[float, float, float]] = []  # end, seconds, seconds that it waited

    class Timed(run.Trainer):
        def _step(self, clock):
            started, waited = time.perf_counter(), self.loader.waited
            super()._step(clock)
            steps.append((time.time(), time.perf_counter() - started, self.loader.waited - waited))

    run.Trainer = Timed
    run.train(load_recipe(recipe), folder)
    later = steps[1:]
    return {
        "first_step": steps[0][0],
        "wait": sum(waited for _, _, waited in later) / sum(seconds for _, seconds, _ in later),
        "step_seconds": [seconds for _, seconds, _ in later],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _some_pictures(path: Path, num: int) -> Path:
    """A Parquet file of random pictures, for a smoke run without one."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rng, encoded = np.random.default_rng(0), []
    for _ in range(num):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(out, "png")
        encoded.append(out.getvalue())
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded, "text": ["noise"] * num}), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
