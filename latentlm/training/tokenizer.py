"""Kinds "image_tokenizer" and "speech_tokenizer": a recipe ──▶ tokenizer, media, their loader; what is exported.

Place in the flow: 5, looked up by `run.py` through the registry of kinds, in every process with equal results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import ImageTokenizerRecipe, MediaConfig, SpeechTokenizerRecipe
from ..config.modalities import tokenizer_kinds
from ..data.sources import media
from ..data.task_source import Concatenated, Lazy
from ..tokenizers.base import RESUME_OPTIONAL, Tokenizer, fields_without
from ..tokenizers.losses import loss_weights
from ..types import MediaBatch
from .distributed import World
from .feed import media_batches
from .objective import Run, plain
from .protocols import Loader
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
        identity={"tokenizer": fields_without(recipe.tokenizer, RESUME_OPTIONAL)},
        unit="examples",
        write=None,
        on_sample=ReconstructionWriter(sources, folder / "samples"),
    )


def recipe_media(config: MediaConfig, modality: str) -> list[Sequence]:
    """The media to learn from, by source."""
    return [media(source, modality, "train") for source in config.sources]


def media_loader(recipe: Recipe, run: TokenizerRun, world: World) -> Loader:
    """Batches of prepared media of `run`: this process's lanes of them."""
    return media_batches(recipe.data, run.media, recipe.tokenizer, recipe.training, world)


CALIBRATION_MEDIA = 20_000
"""Media of a source on disk on which a tokenizer is calibrated, at most: evenly spread."""


def export_tokenizer(recipe: Recipe, run: TokenizerRun, trainer: Trainer, folder: Path) -> None:
    """The averaged weights where there are any, calibrated on all training media in memory and a share of those on
    disk: the one tokenizer of the run."""
    configs = recipe.data.sources
    items = Concatenated([_some(m) if c.is_on_disk else m for c, m in zip(configs, run.media, strict=True)])
    with trainer.averaged():
        found = run.model.calibrate(_batches(run.model, items))
        run.model.save(folder)
    std, absolute = ("-" if v is None else _numbers(v) for v in (found.std, found.c_sigma_absolute))
    print(f"calibrated on {found.num_latents:,} latents: std(μ) {std}, C_σ absolute {absolute}")


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _some(source: Sequence) -> Sequence:
    num = min(len(source), CALIBRATION_MEDIA)
    return Lazy(num, lambda place: source[place * len(source) // num])


def _batches(tokenizer: Tokenizer, items: Sequence, size: int = 32) -> Iterator[MediaBatch]:
    for start in range(0, len(items), size):
        yield tokenizer.batch([items[i] for i in range(start, min(start + size, len(items)))])
