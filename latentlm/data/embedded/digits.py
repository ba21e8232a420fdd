"""Handwritten digits: 1,797 real scans of 8×8 with their words; the last 297 are held out.

Source: UCI Optical Recognition of Handwritten Digits (CC BY 4.0, digits.LICENSE.txt), through scikit-learn.
Place in the flow: raw items for `data.sources`; the prompt of a digit is its bare word.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_HELD_OUT = 297


@dataclass(frozen=True)
class Digit:
    """One scan: RGB image of 8×8 (grey, white ink on black), its label 0..9 and the label's word."""

    image: PILImage
    label: int
    word: str


def load(split: str = "train") -> list[Digit]:
    """The scans of "train" (1,500) or "held_out" (297), in the order of the data set."""
    assert split in {"train", "held_out"}, split
    digits = _all()
    return list(digits[:-NUM_HELD_OUT] if split == "train" else digits[-NUM_HELD_OUT:])


@cache
def _all() -> tuple[Digit, ...]:
    from PIL import Image

    path = resources.files(__package__) / "digits.npz"
    with path.open("rb") as file, np.load(file) as archive:
        scans, labels = archive["scans"], archive["labels"]
    # 17 levels 0..16 onto 0..255
    grey = np.round(scans * (255 / 16)).astype(np.uint8)
    return tuple(
        Digit(Image.fromarray(scan).convert("RGB"), int(label), WORDS[label])
        for scan, label in zip(grey, labels, strict=True)
    )
