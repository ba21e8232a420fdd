"""Plain English: the Declaration of Independence and the Constitution of the United States, in pieces of ≤ 400 bytes.

Both are in the public domain (prose.LICENSE.txt). Place in the flow: raw texts for `data.sources`.
Every tenth paragraph is held out as a whole.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

MAX_BYTES = 400
HELD_OUT_EVERY = 10


def load(split: str = "train") -> list[str]:
    """The pieces of "train" or "held_out", in the order of the text. The text is ASCII: a character is a byte."""
    assert split in {"train", "held_out"}, split
    return [
        piece
        for number, paragraph in enumerate(_paragraphs())
        if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == (split == "held_out")
        for piece in pieces(paragraph)
    ]


def pieces(paragraph: str, max_bytes: int = MAX_BYTES) -> list[str]:
    """Cut a paragraph into pieces of at most `max_bytes`, which joined with spaces are the paragraph.

    A cut is after a sentence or clause that ends in the second half of the allowed length, else after a word.
    """
    out = []
    while len(paragraph) > max_bytes:
        room = paragraph[: max_bytes + 1]
        ends = [match.start() for match in re.finditer(r"(?<=[.;:,]) ", room)]
        cut = ends[-1] if ends and ends[-1] > max_bytes // 2 else room.rindex(" ")
        out.append(paragraph[:cut])
        paragraph = paragraph[cut + 1 :]
    return [*out, paragraph]


@cache
def _paragraphs() -> tuple[str, ...]:
    return tuple((resources.files(__package__) / "prose.txt").read_text(encoding="ascii").splitlines())
