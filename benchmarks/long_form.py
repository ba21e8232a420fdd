"""Memory of long speech: current and peak resident set after 1, 5, 15 and 30 minutes of one utterance, as JSON.

    python benchmarks/long_form.py --out long_form.json

A small model of VibeVoice's kind (two tokenizers of hop 3200 at 24 kHz, connectors, answers until <EOS>) with random
weights speaks a script of four voices to a WAV file, with guidance, and never ends by itself. The cache has its full
size from the start, as with `--max-seconds`, so memory that grows after the first minute is a leak per frame.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from commands import resident_bytes
from figures import Figure, describe, hardware, table, write_json

from latentlm.config import (
    DiffusionHeadConfig,
    ModelConfig,
    PosteriorConfig,
    SpeechTokenizerConfig,
    TransformerConfig,
)
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.request import Request
from latentlm.media.recording import Recording
from latentlm.media.sound import Audio
from latentlm.model.latentlm import LatentLM, ModalitySpec
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import TextTokenizer

MEBIBYTE = 2**20
SCRIPT = "\n".join(f"Speaker {1 + turn % 4}: What turn {turn} has to say." for turn in range(12))
STRIDES = (8, 20, 20)


def build(positions: int, width: int = 64) -> Pipeline:
    """A random model whose context holds `positions`, and whose answers never end."""
    torch.manual_seed(0)
    text = TextTokenizer()
    model = LatentLM(
        ModelConfig(
            prompt="script",
            answer="document",
            latent_projection="connector",
            transformer=TransformerConfig(
                width=width, num_layers=2, num_heads=4, num_kv_heads=2, qkv_bias=True, context_length=positions
            ),
            head=DiffusionHeadConfig(num_layers=2, norm_weight=True, condition_norm=False),
        ),
        text.vocab_size,
        text.special,
        {"speech": ModalitySpec(16, None, 8)},
    )
    special = model.special
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        # Equal logits: argmax takes the first, <PROCEED>.
        model.text_head.weight[[special.proceed, special.eod, special.bod["speech"], special.eos]] = 0
    tokenizers = {"speech": tokenizer("both", "sigma", 16), "semantic": tokenizer("encoder", "none", 8)}
    return Pipeline(model, {"text": text} | tokenizers)


def tokenizer(parts: str, posterior: str, latent_dim: int) -> SpeechTokenizer:
    config = SpeechTokenizerConfig(
        parts=parts,
        strides=STRIDES,
        depths=(1,) * (len(STRIDES) + 1),
        channels=2,
        max_channels=32,
        latent_dim=latent_dim,
        loudness=-25,
        posterior=PosteriorConfig(kind=posterior),
    )
    built = SpeechTokenizer(config).eval()
    built.latent_mean.zero_()
    built.latent_std.fill_(1.0)
    return built


def speak(pipeline: Pipeline, minutes: list[float], path: Path) -> list[dict[str, float]]:
    """One utterance into `path`; memory and wall time as each of `minutes` of audio is reached."""
    rate = pipeline.tokenizers["speech"].rate
    clip = Audio(0.1 * torch.randn(24000, generator=torch.Generator().manual_seed(0)), 24000)
    prompt = pipeline.prompt(SCRIPT, "speech", voices=dict.fromkeys(range(1, 5), clip))
    request = Request(prompt, "speech", guidance=1.3, steps=1, max_latents=round(max(minutes) * 60 * rate))
    waiting, found, started = sorted(minutes), [], time.perf_counter()
    with Recording(path) as recording:
        for piece in pipeline.stream(request):
            recording.append(piece)
            while waiting and recording.seconds >= 60 * waiting[0]:
                seconds = time.perf_counter() - started
                memory = {"resident_mib": resident_bytes(os.getpid()) / MEBIBYTE, "peak_mib": peak() / MEBIBYTE}
                found.append({"minutes": waiting.pop(0), "seconds": seconds} | memory)
    return found


def peak() -> int:
    """Bytes of the largest resident set that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cache_bytes_per_second(pipeline: Pipeline) -> float:
    """Keys and values of both branches for one second of speech."""
    cache = pipeline.model.transformer.new_cache(2, 1)
    return (cache.keys.nbytes + cache.values.nbytes) * pipeline.tokenizers["speech"].rate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 5, 15, 30])
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    machine = hardware()
    print(describe(machine), file=sys.stderr)
    positions = 2048 + round(max(options.minutes) * 60 * 7.5)
    pipeline = build(positions)
    with tempfile.TemporaryDirectory() as folder:
        reached = speak(pipeline, options.minutes, Path(folder) / "talk.wav")
    growth = max(reached[-1][name] / reached[0][name] for name in ("resident_mib", "peak_mib"))
    what = f"memory after {reached[-1]['minutes']:g} minutes of speech divided by that after {reached[0]['minutes']:g}"
    detail = {"reached": reached, "cache_kib_per_second": cache_bytes_per_second(pipeline) / 1024}
    figure = Figure("long_form.growth", what, growth, "x", "< 1.05", detail)
    print(table([figure]), file=sys.stderr)
    print(json.dumps(detail, indent=2))
    if options.out:
        write_json(options.out, [figure], machine, {"minutes": options.minutes})
    return 0 if figure.met else 1


if __name__ == "__main__":
    sys.exit(main())
