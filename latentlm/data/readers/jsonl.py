"""A JSONL file of any size as documents, in the format of `data/manifest.py`.

Place in the flow: 2, a reader. Opening a file finds the offsets of its lines. A line is parsed and its media are read
when its document is asked for; nothing is kept. Media may be URLs; relative paths start at the file's folder.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from ...config.modalities import modality
from ...errors import UserError
from ...types import Document, Segment, Text
from ..manifest import ManifestSegment, parse_line
from ..placed import PlacedDocuments
from .files import Location, PerThread
from .rows import decode

BLOCK = 2**20
_SPACE = b" \t\r\n\xef\xbb\xbf"


class JsonLines(PlacedDocuments):
    """The documents of a JSONL file. Picklable; read from any thread."""

    def __init__(self, file: Location):
        """Finds the lines; empty ones are ignored. UserError if there are none."""
        self.file = file
        self._starts, self._numbers = _lines(file)
        if not len(self._numbers):
            raise UserError(f"{file}: the manifest is empty")
        self._open = PerThread(file.open_binary)

    def __len__(self) -> int:
        return len(self._numbers)

    def place(self, index: int) -> str:
        return f"{self.file}:{self._numbers[index]}"

    def __getitem__(self, index: int) -> Document:
        """Document `index`. UserError, which names line and key, if it is wrong or its media are missing or broken."""
        segments = self.line(index)
        return Document(tuple(self._segment(index, place, segment) for place, segment in enumerate(segments)))

    def texts(self, index: int) -> list[str]:
        return [segment.text for segment in self.line(index) if segment.text is not None]

    def line(self, index: int) -> tuple[ManifestSegment, ...]:
        """The segments of line `index`, checked; media are still names of files."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        handle: IO[bytes] = self._open()
        handle.seek(int(self._starts[index]))
        data = handle.read(int(self._starts[index + 1] - self._starts[index]))
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.place(index)}: not UTF-8 text at byte {error.start}") from None
        return parse_line(str(self.file), int(self._numbers[index]), text).document.segments

    def content(self, index: int, position: int, segment: ManifestSegment) -> Any:
        """The medium that a segment names, read from its file."""
        name = getattr(segment, segment.modality)
        try:
            return decode(self.file.beside(name), segment.modality)
        except UserError as error:
            raise UserError(f"{self.place(index)}: segments.{position}.{segment.modality}: {error}") from None

    def holds(self, name: str) -> bool:
        """Whether any line has media of modality `name`. Parses only lines that contain the word."""
        word, handle = f'"{name}"'.encode(), self._open()
        for index in range(len(self)):
            handle.seek(int(self._starts[index]))
            if word in handle.read(int(self._starts[index + 1] - self._starts[index])) and any(
                segment.modality == name for segment in self.line(index)
            ):
                return True
        return False

    def _segment(self, index: int, position: int, segment: ManifestSegment) -> Segment:
        flags = {"condition": segment.condition, "loss": segment.is_target}
        if segment.text is not None:
            return Text(segment.text, **flags)
        return modality(segment.modality).segment(self.content(index, position, segment), **flags)


class JsonLinesMedia(Sequence):
    """The different media of one modality in a JSONL file, in the order of their first occurrence.

    without: numbers of documents whose media are left out, unless another document has them too.
    """

    def __init__(self, documents: JsonLines, name: str, without: np.ndarray | None = None):
        """Reads all other lines. UserError for wrong ones."""
        left_out = frozenset(() if without is None else without.tolist())
        self.documents, self.name = documents, name
        lines, positions, names = array("q"), array("q"), array("q")
        for index in range(len(documents)):
            for position, segment in enumerate(() if index in left_out else documents.line(index)):
                if segment.modality == name:
                    lines.append(index)
                    positions.append(position)
                    names.append(hash(getattr(segment, name)))
        _, first = np.unique(np.frombuffer(names, np.int64), return_index=True)
        first.sort()
        self._lines, self._positions = (np.frombuffer(found, np.int64)[first] for found in (lines, positions))

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        line, position = int(self._lines[index]), int(self._positions[index])
        return self.documents.content(line, position, self.documents.line(line)[position])


def _lines(file: Location) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the lines that are not empty, followed by the end of the last; and their numbers, from 1."""
    starts, numbers = array("q"), array("q")
    with file.open_binary() as handle:
        begin, number, rest = 0, 1, b""
        while block := handle.read(BLOCK):
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                if line.strip(_SPACE):
                    starts.append(begin)
                    numbers.append(number)
                begin += len(line) + 1
                number += 1
        if rest.strip(_SPACE):
            starts.append(begin)
            numbers.append(number)
        starts.append(begin + len(rest))
    found = np.frombuffer(starts, np.int64)
    return found, np.frombuffer(numbers, np.int64)
