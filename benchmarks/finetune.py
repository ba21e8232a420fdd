"""Checks fine-tuning by over-fitting: a tiny random model memorises 8 clips, with all weights and with LoRA.

    python benchmarks/finetune.py --out finetune.json             spoken digits of ../shared/data (extra dev)
    python benchmarks/finetune.py --clips espeak                  the embedded eSpeak voice instead

It takes the same steps as a user: sound files and a manifest on disk, recipe `finetune`, `latentlm.load` of the result.
Each row has a method and a seed; the error of the generated latents, ‖generated − cached‖ / ‖cached‖ over all clips,
before and after; the number of clips with the right length (the model ends them itself); the share of the weights that
trained; seconds. It tests that gradients reach all weights that should train, and that trained weights are saved. It
does not test how well a voice is learnt: the backbone is random, while a user's is trained.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import Figure, describe, hardware, table, write_json
from safetensors.torch import load_file

import latentlm
from latentlm.checkpoint import load_tokenizers, modality_specs, resolve, write_config
from latentlm.config import DiffusionConfig, DiffusionHeadConfig, ModelConfig, TransformerConfig, load_recipe
from latentlm.data.cache import LatentCache
from latentlm.data.manifest import Manifest
from latentlm.data.sources import get_source
from latentlm.generation.engine import Engine
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.request import Request
from latentlm.media.sound import Audio, save_audio
from latentlm.model.latentlm import LatentLM
from latentlm.training.run import train
from latentlm.types import Document
from latentlm.weights import save_weights

REAL = Path(__file__).parents[2] / "shared" / "data" / "fsdd-dev.parquet"
"""Spoken digits, 8 kHz FLAC (Free Spoken Digit Dataset, CC BY-SA 4.0); not part of the repository."""

WAYS = {
    "full": None,
    "lora": {"rank": 16, "alpha": 32, "full": ["heads", "embed_latents", "text_head"]},
}
"""The adapter of each method. The text head predicts the end of a span; as it is random, it trains too."""

TOLERANCE = 0.1
"""Largest allowed error of the generated latents; a model that has learnt nothing has 1 or more."""


def real_clips(path: Path, num: int) -> Iterator[tuple[str, Audio]]:
    """The first take of each of `num` digits by one speaker."""
    import pyarrow.parquet
    import soundfile

    table = pyarrow.parquet.read_table(path, columns=["audio", "text", "speaker", "take"]).to_pylist()
    speaker = min(row["speaker"] for row in table)
    rows = sorted((row for row in table if row["speaker"] == speaker), key=lambda row: (row["take"], row["text"]))
    for row in rows[:num]:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]), dtype="float32")
        yield row["text"], Audio(torch.from_numpy(samples), rate)


def spoken_clips(num: int) -> Iterator[tuple[str, Audio]]:
    """The first embedded clip of each of `num` words."""
    words: dict[str, Audio] = {}
    for document in get_source("spoken_digits").document_source("text_to_speech", limit=4 * num):
        said, speech = document.segments
        words.setdefault(said.text, speech.content)
    yield from list(words.items())[:num]


def write_manifest(clips: Iterator[tuple[str, Audio]], folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = []
    for number, (text, audio) in enumerate(clips):
        save_audio(audio, folder / f"{number}.wav")
        segments = [{"text": text, "condition": True}, {"speech": f"{number}.wav"}]
        lines.append(json.dumps({"segments": segments}) + "\n")
    path = folder / "clips.jsonl"
    path.write_text("".join(lines))
    return path


def random_start(folder: Path, seed: int) -> Path:
    """A checkpoint of a small random model on the tokenizers of `tiny`. Its diffusion target is the mean, so that
    each clip has one right answer."""
    tokenizers = load_tokenizers(resolve("tiny") / "tokenizers")
    del tokenizers["image"]
    config = ModelConfig(
        transformer=TransformerConfig(width=64, num_layers=2, num_heads=4),
        head=DiffusionHeadConfig(num_layers=2),
        diffusion=DiffusionConfig(target="mean", timesteps_per_latent=8),
    )
    torch.manual_seed(seed)
    text = tokenizers["text"]
    model = LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers))
    write_config(folder, model, tokenizers)
    save_weights(folder / "model.safetensors", model.state_dict())
    return folder


def tune(start: Path, manifest: Path, out: Path, way: str, seed: int, steps: int) -> Path:
    """Train by the recipe `finetune`, with all clips in every step."""
    changes = {
        "model.start": str(start),
        "data.sources": [{"manifest": str(manifest)}],
        "data.sequence_length": 96,
        "data.rows": 1,
        "training.adapter": WAYS[way],
        "training.steps": steps,
        "training.seed": seed,
        "training.threads": 1,
        "training.precision": "fp32",
        "training.save_every": steps,
        "training.optimizer.learning_rate": 0.004,
    }
    train(load_recipe("finetune", changes), out)
    return out


def error(pipeline: Pipeline, manifest: Path) -> tuple[float, int]:
    """‖generated − cached‖ / ‖cached‖ over all clips, the shorter of two padded; and the number of right lengths."""
    cache = LatentCache({"speech": pipeline.tokenizers["speech"]})
    documents = [cache.resolve(document) for document in Manifest(manifest)]
    options = {"guidance": 1.0, "steps": 20, "max_latents": 100}
    requests = [Request(Document(document.segments[:1]), "speech", **options) for document in documents]
    active = pipeline._active_requests(requests)
    latents: list[list[torch.Tensor]] = [[] for _ in active]
    for event in Engine.of(pipeline.model, active).run():
        if event.kind == "latent":
            latents[event.handle].append(event.value)
    difference, size, right = 0.0, 0.0, 0
    for spoken, document in zip(latents, documents, strict=True):
        cached = document.segments[1].content.mean
        made = torch.stack(spoken) if spoken else cached[:0]
        length = max(len(cached), len(made))
        padded = [torch.nn.functional.pad(x, (0, 0, 0, length - len(x))) for x in (cached, made)]
        difference += float((padded[0] - padded[1]).square().sum())
        size += float(cached.square().sum())
        right += len(cached) == len(made)
    return (difference / size) ** 0.5, right


def trained_share(start: Path, tuned: Path) -> float:
    """Share of the weights whose tensors training changed; with an adapter, the size of the saved adapter instead."""
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tuned / "model"))
    num = sum(value.numel() for value in before.values())
    if (tuned / "adapter").is_dir():
        return sum(value.numel() for value in load_file(tuned / "adapter" / "adapter_model.safetensors").values()) / num
    return sum(value.numel() for name, value in before.items() if not torch.equal(value, after[name])) / num


def measure(options: argparse.Namespace, folder: Path) -> Iterator[Figure]:
    manifest = write_manifest(clips(options.clips, options.num_clips), folder / "data")
    for seed in options.seeds:
        start = random_start(folder / f"start-{seed}", seed)
        before, _ = error(latentlm.load(start), manifest)
        for way in WAYS:
            began = time.process_time()
            out = tune(start, manifest, folder / f"{way}-{seed}", way, seed, options.steps)
            seconds = time.process_time() - began
            after, right = error(latentlm.load(out), manifest)
            share = trained_share(start, out)
            detail = {"before": before, "right_lengths": right, "trained_share": share, "cpu_seconds": seconds}
            what = f"{way:4} seed {seed}: error {before:.2f} before; {right}/{options.num_clips} lengths right; "
            what += f"{share:.0%} of the weights trained; {seconds:.0f} CPU-s"
            yield Figure(f"finetune.{way}.seed{seed}", what, after, "", f"<= {TOLERANCE}", detail)


def clips(where: str, num: int) -> Iterator[tuple[str, Audio]]:
    if where == "espeak":
        return spoken_clips(num)
    if not Path(where).is_file():
        raise SystemExit(f"{where}: no such file; name the parquet of spoken digits with --clips, or --clips espeak")
    return real_clips(Path(where), num)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--clips", default=str(REAL), help="parquet of spoken digits, or espeak")
    parser.add_argument("--num-clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    machine = hardware()
    print(describe(machine), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = list(measure(options, Path(folder)))
    print(table(figures))
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write_json(options.out, figures, machine, settings | {"clips": Path(options.clips).name})
    return 0


if __name__ == "__main__":
    sys.exit(main())
