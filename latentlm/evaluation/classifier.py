"""A picture classifier that an evaluation trains: the judge of pictures drawn for class words of a user's own data.

Place in the flow: labelled pictures ──▶ classes and features ──▶ `drawn.py`. Training takes a fixed number of examples,
less than a minute of one core for thousands of pictures, and is a function of the pictures and the seed alone. Such a
classifier makes mistakes, so its accuracy on held-out pictures is reported beside each figure that it gives.
Legend: `B` pictures, `S` = SIZE, `K` classes, `F` features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIZE = 32
NUM_FEATURES = 64
BATCH_SIZE, PEAK_RATE = 64, 4e-3
NUM_EXAMPLES = 40_000
"""Examples seen in training, repeats included."""
MAX_EPOCHS = 40
SHIFT = 2
"""Pixels by which each copy is shifted at most, up or down and left or right. Copies are not mirrored: letters and
digits would change their class."""


class PictureClassifier(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] -> logits (B, K)."""

    def __init__(self, num_classes: int, channels: int = 32):
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(3, channels, kernel=4, stride=2),  # (B, 32, 16, 16)
            *_block(channels, 2 * channels),
            nn.MaxPool2d(2),  # (B, 64, 8, 8)
            *_block(2 * channels, 2 * channels),
            *_block(2 * channels, 4 * channels),
            nn.MaxPool2d(2),  # (B, 128, 4, 4)
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * channels * (SIZE // 8) ** 2, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.trunk(pictures))

    @torch.no_grad()
    def classify(self, pictures: Tensor) -> Tensor:
        """The class of each picture, (B,)."""
        return torch.cat([self(part).argmax(1) for part in pictures.split(BATCH_SIZE)])

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Penultimate features (B, F)."""
        return torch.cat([self.trunk(part) for part in pictures.split(BATCH_SIZE)])


def to_pixels(images: Sequence[PILImage]) -> Tensor:
    """Square pictures of any size and mode -> (B, 3, S, S) in [-1, 1]."""
    from ..media.picture import image_to_tensor

    return torch.stack([image_to_tensor(image, SIZE) for image in images])


@torch.enable_grad()
def train_classifier(pictures: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> PictureClassifier:
    """A classifier in evaluation mode, trained on `pictures` (B, 3, S, S) with classes `labels` (B,)."""
    generator = torch.Generator().manual_seed(seed)
    epochs = max(1, min(MAX_EPOCHS, NUM_EXAMPLES // len(labels)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = PictureClassifier(num_classes)
        optimizer = torch.optim.AdamW(classifier.parameters(), PEAK_RATE, weight_decay=1e-2)
        num_steps = epochs * max(1, math.ceil(len(labels) / BATCH_SIZE))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=num_steps)
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=generator)
            for batch in order.chunk(math.ceil(len(order) / BATCH_SIZE)):  # nearly equal: no batch of one picture
                logits = classifier(_shifted(pictures[batch], generator))
                loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return classifier.eval()


def _shifted(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of the pictures with their edges repeated, the same for the whole batch."""
    padded = F.pad(pictures, (SHIFT,) * 4, mode="replicate")
    down, right = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    return padded[:, :, down : down + SIZE, right : right + SIZE]


def _block(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]
