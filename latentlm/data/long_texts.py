"""Texts longer than a row ──▶ several documents, each of which fits.

Place in the flow: 2, between the documents of a source and the loader. Only documents of one text that is all target
are split; documents with media, a condition or several texts are refused when they are too long. A text is cut after
a paragraph, else after a line, a sentence or a word, else within a word; the pieces joined give the text. Each piece is
a document of its own: it begins with <BOS> and ends with <EOS>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..types import Document, Text
from .placed import PlacedDocuments, place_of

SMALLEST = 8
"""Smallest room for a piece in a row, in tokens; with less, nothing is split."""
_BREAKS = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", r"[.!?…。！？]\S?\s+", r"\s+"))


def is_plain_text(document: Document) -> bool:
    """Whether `document` is one text, all of it a target."""
    (first, *rest) = document.segments
    return not rest and isinstance(first, Text) and first.loss and not first.condition


def cuts(text: str, encode: Callable[[str], Sequence[int]], most: int) -> list[int]:
    """The offsets, in characters, at which to cut `text` so that no piece has more than `most` tokens; ascending."""
    found: list[int] = []
    usual = max(1, int(most * len(text) / max(1, len(encode(text)))))  # characters of `most` tokens
    start, size = 0, usual
    while start < len(text):
        end = start + size
        if end < len(text):
            end = _after_break(text, start, end)
        piece = text[start:end]
        if len(piece) > 1 and len(encode(piece)) > most:
            size = max(1, size * 9 // 10)
            continue
        start, size = start + len(piece), usual
        if start < len(text):
            found.append(start)
    return found


def _after_break(text: str, start: int, end: int) -> int:
    """The end of the last paragraph, line, sentence or word in the second half of text[start:end]; else `end`."""
    half = (start + end) // 2
    for pattern in _BREAKS:
        ends = [match.end() for match in pattern.finditer(text, half, end)]
        if ends:
            return ends[-1]
    return end


class SplitTexts(PlacedDocuments):
    """`documents`, where those with `cuts` (document number -> offsets) are replaced by their pieces."""

    def __init__(self, documents: Sequence[Document], cuts: Mapping[int, Sequence[int]], label: str):
        self.documents, self.cuts, self.label = documents, dict(cuts), label
        self._split = np.array(sorted(cuts), np.int64)  # numbers of the documents that are split
        more = np.array([len(cuts[number]) for number in self._split.tolist()], np.int64)
        self._added = np.concatenate([[0], more.cumsum()])  # pieces beyond the first, before each of them

    def __len__(self) -> int:
        return len(self.documents) + int(self._added[-1])

    def find(self, index: int) -> tuple[int, int | None]:
        """The number of the document that `index` is part of, and which piece it is, from 0; None for a whole one."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        before = int(np.searchsorted(self._split + self._added[:-1], index, side="right"))  # split ones up to here
        if before:
            number = int(self._split[before - 1])
            piece = index - number - int(self._added[before - 1])
            if piece <= len(self.cuts[number]):
                return number, piece
        return index - int(self._added[before]), None

    def __getitem__(self, index: int) -> Document:
        number, piece = self.find(index)
        document = self.documents[number]
        if piece is None:
            return document
        bounds = [0, *self.cuts[number], None]
        (whole,) = document.segments
        return Document((Text(whole.text[bounds[piece] : bounds[piece + 1]]),))

    def place(self, index: int) -> str:
        number, piece = self.find(index)
        where = place_of(self.documents, number, self.label)
        return where if piece is None else f"{where}, piece {piece + 1} of {len(self.cuts[number]) + 1}"
