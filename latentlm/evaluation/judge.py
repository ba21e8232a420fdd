"""The judge of drawn digits: a small convolutional network that classifies 8×8 scans.

Place in the flow: scans or drawings ──▶ classes and features ──▶ `image.py`. `make_judge` trained it once on the 1,500
real training digits with warped copies; the weights are part of the package, so that figures of different machines have
the same judge. Its accuracy on the 297 held-out digits is in every report.
Legend: `B` pictures, `F` features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.embedded import digits
from ..weights import load_weights
from .frechet import FrechetComparison, compare_balanced

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIZE = 8
NUM_CLASSES = len(digits.WORDS)
EPOCHS, BATCH_SIZE, PEAK_RATE = 60, 64, 4e-3
ROTATION, SHIFT, SCALE = 0.2, 0.8, 0.12  # limits of the warped copies: radians, pixels, relative
NUM_FEATURES = 64
WEIGHTS = "judge.safetensors"


class Judge(nn.Module):
    """Scans (B, 1, 8, 8) in [0, 1] -> logits (B, 10)."""

    def __init__(self, channels: int = 32):
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(1, channels),
            *_block(channels, channels),
            nn.MaxPool2d(2),
            *_block(channels, 2 * channels),
            *_block(2 * channels, 2 * channels),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * channels, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, scans: Tensor) -> Tensor:
        return self.head(self.trunk(scans))

    @torch.no_grad()
    def classify(self, scans: Tensor) -> Tensor:
        """The class of each scan, (B,)."""
        return self(scans).argmax(1)

    @torch.no_grad()
    def features(self, scans: Tensor) -> Tensor:
        """Penultimate features (B, F)."""
        return self.trunk(scans)


def to_scans(images: Sequence[PILImage]) -> Tensor:
    """Pictures of any size -> grey scans (B, 1, 8, 8) in [0, 1], averaged over blocks."""
    from PIL import Image

    grey = [image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32) for image in grey]))[:, None] / 255


@dataclass(frozen=True)
class Scans:
    """Scans (B, 1, 8, 8) with their labels (B,)."""

    values: Tensor
    labels: Tensor


def real_scans(split: str) -> Scans:
    """The real digits of a split; "all" is both."""
    items = digits.load("train") + digits.load("held_out") if split == "all" else digits.load(split)
    return Scans(to_scans([item.image for item in items]), torch.tensor([item.label for item in items]))


def train_judge(seed: int = 0, epochs: int = EPOCHS) -> Judge:
    """Train on the real training digits; about 25 s on one core."""
    data = real_scans("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
        optimizer = torch.optim.AdamW(judge.parameters(), PEAK_RATE, weight_decay=1e-2)
        num_batches = math.ceil(len(data.labels) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * num_batches)
        for _ in range(epochs):
            warped = _warp(data.values, generator)
            for batch in torch.randperm(len(warped), generator=generator).split(BATCH_SIZE):
                loss = F.cross_entropy(judge(warped[batch]), data.labels[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return judge.eval()


@cache
def load_judge() -> Judge:
    """The packaged judge, in evaluation mode."""
    judge = Judge()
    with resources.as_file(resources.files(__package__) / WEIGHTS) as path:
        load_weights(Path(path), judge)
    return judge.eval()


def accuracy(judge: Judge, scans: Scans) -> float:
    """The share of scans that the judge gives their label."""
    return float((judge.classify(scans.values) == scans.labels).float().mean())


def compare(generated: Scans, real: Scans, judge: Judge, num_draws: int = 40, seed: int = 0) -> FrechetComparison:
    """Fréchet distances in the judge's features, with balanced classes.

    The labels of `generated` are the prompted classes, drawn right or wrong. Raises UserError if a class is missing.
    """
    return compare_balanced(
        judge.features(generated.values), generated.labels, judge.features(real.values), real.labels, num_draws, seed
    )


def _block(channels_in: int, channels_out: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]


def _warp(scans: Tensor, generator: torch.Generator) -> Tensor:
    """Each scan rotated, shifted, sheared, scaled and brightened a little, at random."""
    B = len(scans)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(B, *shape, generator=generator) * 2 - 1

    angle, shear = uniform() * ROTATION, uniform() * ROTATION
    shift = uniform(2) * SHIFT * 2 / SIZE
    stretch = 1 + uniform(2) * SCALE
    rows = (
        torch.stack([angle.cos() * stretch[:, 0], shear - angle.sin() * stretch[:, 1], shift[:, 0]], 1),
        torch.stack([angle.sin() * stretch[:, 0], angle.cos() * stretch[:, 1], shift[:, 1]], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(scans.shape), align_corners=False)
    warped = F.grid_sample(scans, grid, align_corners=False)
    return (warped * (1 + 0.15 * uniform(1, 1, 1))).clamp(0, 1)
