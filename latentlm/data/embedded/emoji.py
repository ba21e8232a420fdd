"""Colour emoji with their Unicode names: one 32×32 RGB picture on white each, no skin tones, no flag sequences.

Rendered once from Noto Color Emoji (SIL OFL 1.1, emoji.LICENSE.txt) by `make_emoji`.
Place in the flow: raw items for `data.sources`. A name has one picture only, so nothing is held out: to draw the
picture of a name the model must remember it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIZE = 32
COLUMNS = 40
ALWAYS = ("red apple", "grinning face")
"""Names that every subset contains, so that examples in documentation work with any of them."""
SIGNS = (range(0x1F300), range(0x1F500, 0x1F568))
"""Code points of arrows, letters, clock faces and other signs, which a subset contains last."""


@dataclass(frozen=True)
class Emoji:
    """One emoji: RGB image of 32×32, its Unicode name in lower case, its character."""

    image: PILImage
    name: str
    character: str


def load(split: str = "train") -> list[Emoji]:
    """All emoji for "train", in order of code point; nothing for "held_out"."""
    assert split in {"train", "held_out"}, split
    return list(_all()) if split == "train" else []


def subset(num_emoji: int) -> list[Emoji]:
    """A fixed choice of `num_emoji`, in order of code point; a smaller subset is part of every larger one.

    Each contains "red apple" (from two on also "grinning face"); things, beings and faces come before signs.
    Raises UserError for a number below 1 or above that of all emoji.
    """
    emoji = _all()
    if not 0 < num_emoji <= len(emoji):
        raise UserError(f"a subset of {num_emoji} emoji: there are 1 to {len(emoji)}")
    order = np.random.default_rng(0).permutation(len(emoji)).tolist()
    order.sort(key=lambda index: any(ord(emoji[index].character) in signs for signs in SIGNS))
    first = [index for name in ALWAYS for index in order if emoji[index].name == name]
    chosen = (first + [index for index in order if index not in first])[:num_emoji]
    return [emoji[index] for index in sorted(chosen)]


@cache
def _all() -> tuple[Emoji, ...]:
    from PIL import Image

    folder = resources.files(__package__)
    with (folder / "emoji.png").open("rb") as file, Image.open(file) as picture:
        atlas = picture.convert("RGB")
    items = []
    for index, line in enumerate((folder / "emoji.txt").read_text(encoding="utf-8").splitlines()):
        code, name = line.split(" ", 1)
        left, top = index % COLUMNS * SIZE, index // COLUMNS * SIZE
        items.append(Emoji(atlas.crop((left, top, left + SIZE, top + SIZE)), name, chr(int(code, 16))))
    return tuple(items)
