"""Kinds "image_tokenizer" and "speech_tokenizer": a recipe ──▶ tokenizer, media, their loader; what is exported.

Place in the flow: 5, looked up by `run.py` through the registry of kinds, in every process with equal results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import ImageTokenizerRecipe, MediaConfig, SpeechTokenizerConfig, SpeechTokenizerRecipe
from ..data.loader import MediaLoader
from ..data.sources import media
from ..media.picture import image_to_tensor
from ..tokenizers.base import Tokenizer
from ..config.modalities import tokenizer_kinds
from ..tokenizers.losses import loss_weights
from ..types import MediaBatch
from .contract import Run
from .distributed import World
from .objective import plain
from .samples import ReconstructionWriter
from .trainer import Trainer

Recipe = ImageTokenizerRecipe | SpeechTokenizerRecipe


@dataclass(kw_only=True)
class TokenizerRun(Run):
    """What training a tokenizer needs, built from its recipe; `media`: by source."""

    model: Tokenizer
    media: list[Sequence]


def build_tokenizer(recipe: Recipe, folder: Path, world: World) -> TokenizerRun:
    """A new tokenizer and the media that it learns from; one that is not calibrated is not written."""
    torch.manual_seed(recipe.training.seed)
    _, tokenizer_class = tokenizer_kinds()[recipe.tokenizer.kind]
    tokenizer = tokenizer_class(recipe.tokenizer, recipe.losses)
    sources = recipe_media(recipe.data, tokenizer.modality)
    return TokenizerRun(
        model=tokenizer,
        objective=plain(tokenizer, recipe.training.optimizer, loss_weights(recipe)),
        media=sources,
        identity={"tokenizer": recipe.tokenizer.model_dump(mode="json")},
        unit="examples",
        write=None,
        on_sample=ReconstructionWriter(sources, folder / "samples"),
    )


def recipe_media(config: MediaConfig, modality: str) -> list[Sequence]:
    """The media to learn from, by source."""
    return [media(source, modality, "train") for source in config.sources]


def media_loader(recipe: Recipe, run: TokenizerRun, world: World) -> MediaLoader:
    """Batches of prepared media of `run`: this process's streams of them."""
    return MediaLoader(
        run.media,
        [source.weight for source in recipe.data.sources],
        EXAMPLES[run.model.modality](run.model, recipe.data),
        batch_size=recipe.data.batch_size,
        seed=recipe.training.seed,
        num_streams=recipe.training.accumulation,
        rank=world.rank,
        world=world.size,
    )


def export_tokenizer(recipe: Recipe, run: TokenizerRun, trainer: Trainer, folder: Path) -> None:
    """The averaged weights where there are any, calibrated on all training media: the one tokenizer of the run."""
    items = [item for source in run.media for item in source]
    with trainer.averaged():
        found = run.model.calibrate(_batches(run.model, items))
        run.model.save(folder)
    std, absolute = ("-" if v is None else _numbers(v) for v in (found.std, found.c_sigma_absolute))
    print(f"calibrated on {found.num_latents:,} latents: std(μ) {std}, C_σ absolute {absolute}")


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _batches(tokenizer: Tokenizer, items: list, size: int = 32) -> Iterator[MediaBatch]:
    for start in range(0, len(items), size):
        yield tokenizer.batch(items[start : start + size])


# ------------------------------------------------------------------- examples

Example = Callable[[object, np.random.Generator], Tensor]
"""(medium, random numbers) -> what a batch has of it."""


def _image_example(tokenizer, config: MediaConfig) -> Example:
    size, known = tokenizer.config.image_size, {}

    def prepare(image, rng: np.random.Generator) -> Tensor:
        if id(image) not in known:
            known[id(image)] = (image, image_to_tensor(image, size))
        return known[id(image)][1]

    return prepare


def _speech_example(tokenizer, config: MediaConfig) -> Example:
    """A random crop of `config.seconds`, a multiple of the hop; shorter clips stay whole. Rate and loudness are those
    of the whole clip."""
    speech: SpeechTokenizerConfig = tokenizer.config
    length, known = max(1, round(config.seconds * speech.sample_rate / speech.hop)) * speech.hop, {}

    def prepare(audio, rng: np.random.Generator) -> Tensor:
        if id(audio) not in known:
            known[id(audio)] = (audio, tokenizer.waveform(audio))
        samples = known[id(audio)][1]
        start = int(rng.integers(0, max(1, len(samples) - length + 1)))
        return samples[None, start : start + length]  # (1, S)

    return prepare


EXAMPLES: dict[str, Callable[[Tokenizer, MediaConfig], Example]] = {"image": _image_example, "speech": _speech_example}
"""By modality, how a training example is made of a medium."""
