"""Kinds "image_tokenizer" and "speech_tokenizer": build the run of a recipe, its loader, and export the tokenizer.

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
from ..data.cache import media_hash
from ..data.progress import Progress
from ..data.sources import media
from ..data.task_source import Concatenated, Lazy
from ..tokenizers.base import RESUME_OPTIONAL, Tokenizer, fields_without
from ..tokenizers.losses import loss_weights
from ..types import MediaBatch
from .distributed import World
from .feed import NUM_FINGERPRINTED, media_batches
from .folder import check_sources
from .held_out import HeldOutMedia
from .objective import Run, plain
from .protocols import Loader
from .samples import ReconstructionWriter
from .trainer import Trainer

Recipe = ImageTokenizerRecipe | SpeechTokenizerRecipe


@dataclass(kw_only=True)
class TokenizerRun(Run):
    """The run of a tokenizer recipe; `media`: the training media by source."""

    model: Tokenizer
    media: list[Sequence]


def build_tokenizer(recipe: Recipe, folder: Path, world: World) -> TokenizerRun:
    """Build the run: a new tokenizer and the media of each source. Its weights are only written once calibrated."""
    run = preview_tokenizer(recipe, world)
    fingerprints = [_fingerprint(found, run.model.modality) for found in run.media]
    check_sources(folder, fingerprints, recipe.data.sources)
    run.identity = {**run.identity, "data.sources": fingerprints}
    held_out: list[Sequence] = []
    if recipe.training.sample_every:
        held_out = [media(source, run.model.modality, "held_out") for source in recipe.data.sources]
    write = ReconstructionWriter(run.media, folder / "samples")
    score = HeldOutMedia(recipe.data, run.model, held_out)

    def on_sample(tokenizer: Tokenizer, step: int) -> dict[str, float]:
        write(tokenizer, step)
        return score(tokenizer)

    run.on_sample = on_sample
    return run


def preview_tokenizer(recipe: Recipe, world: World) -> TokenizerRun:
    """The run without samples, for --dry-run: nothing is written."""
    torch.manual_seed(recipe.training.seed)
    _, tokenizer_class = tokenizer_kinds()[recipe.tokenizer.kind]
    tokenizer = tokenizer_class(recipe.tokenizer, recipe.losses)
    return TokenizerRun(
        model=tokenizer,
        objective=plain(tokenizer, recipe.training.optimizer, loss_weights(recipe)),
        media=recipe_media(recipe.data, tokenizer.modality),
        identity={"tokenizer": fields_without(recipe.tokenizer, RESUME_OPTIONAL)},
        unit="examples",
        write=None,
    )


def _fingerprint(source: Sequence, modality: str) -> str:
    """A hash of NUM_FINGERPRINTED media of a source, evenly spread."""
    num = min(len(source), NUM_FINGERPRINTED)
    return media_hash(modality, [source[place * len(source) // num] for place in range(num)])


def recipe_media(config: MediaConfig, modality: str) -> list[Sequence]:
    """The media to train on, by source."""
    return [media(source, modality, "train") for source in config.sources]


def media_loader(recipe: Recipe, run: TokenizerRun, world: World) -> Loader:
    """The loader of this process: batches of prepared media of `run`."""
    return media_batches(recipe.data, run.media, recipe.tokenizer, recipe.training, world)


CALIBRATION_MEDIA = 20_000
"""The most media of a source on disk that a tokenizer is calibrated on, evenly spread."""


def export_tokenizer(recipe: Recipe, run: TokenizerRun, trainer: Trainer, folder: Path) -> None:
    """Calibrate the tokenizer, with its averaged weights if there are any, and save it: the only weights of the run.

    Calibration reads all training media in memory, and up to CALIBRATION_MEDIA of each source on disk.
    """
    configs = recipe.data.sources
    items = Concatenated([_some(m) if c.is_on_disk else m for c, m in zip(configs, run.media, strict=True)])
    with trainer.averaged(), Progress("calibrating", "media", len(items)) as progress:
        found = run.model.calibrate(_batches(run.model, items, progress))
        run.model.save(folder)
    std, absolute = ("-" if v is None else _numbers(v) for v in (found.std, found.c_sigma_absolute))
    print(f"calibrated on {found.num_latents:,} latents: std(μ) {std}, C_σ absolute {absolute}")


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _some(source: Sequence) -> Sequence:
    num = min(len(source), CALIBRATION_MEDIA)
    return Lazy(num, lambda place: source[place * len(source) // num])


def _batches(tokenizer: Tokenizer, items: Sequence, progress: Progress, size: int = 32) -> Iterator[MediaBatch]:
    for start in range(0, len(items), size):
        batch = [items[i] for i in range(start, min(start + size, len(items)))]
        yield tokenizer.batch(batch)
        progress.add(len(batch))
