"""JSONL manifests: one document per line (schema and examples: docs/data_format.md).

    {"segments": [{"text": "a red apple", "condition": true}, {"image": "apple.png"}]}

Place in the flow: 2, files ──▶ documents. Lines are checked when the manifest is opened, media when they are read. A
UserError names the manifest, the line number and the key.
A document must fit a row of the recipe (`data.sequence_length`) and the model's context: a longer one that is a single
text is split (`long_texts.py`), any other is refused before training; `data validate --recipe` finds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from ..config import describe
from ..config.modalities import modality, modality_names
from ..errors import UserError
from ..media.files import one_line
from ..types import Document, Segment, Text
from .formats import advice, refuse_compressed
from .placed import DocumentsWithPlaces
from .progress import Progress
from .validation import DataReport


class _Segment(BaseModel):
    """A segment: a text, or the path of a medium, relative to the manifest's folder.

    `loss` is by default the opposite of `condition`: given segments are not targets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str | None = Field(None, min_length=1)
    condition: StrictBool = False
    loss: StrictBool | None = None

    @model_validator(mode="after")
    def _one(self):
        given = [name for name in KEYS if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"a segment has exactly one of {', '.join(KEYS)}, not {' and '.join(given) or 'none'}")
        return self

    @property
    def modality(self) -> str:
        return next(name for name in KEYS if getattr(self, name) is not None)

    @property
    def is_target(self) -> bool:
        return not self.condition if self.loss is None else self.loss


KEYS = ("text", *modality_names())
"""The keys of a segment's content; each segment has exactly one of them."""

ManifestSegment = create_model(
    "ManifestSegment",
    __base__=_Segment,
    **{name: (str | None, Field(None, min_length=1)) for name in modality_names()},
)


class ManifestDocument(BaseModel):
    """A line: the segments of a document, in order, at least one of them a target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    segments: tuple[ManifestSegment, ...] = Field(min_length=1)

    @field_validator("segments")
    @classmethod
    def _has_target(cls, segments: tuple[ManifestSegment, ...]) -> tuple[ManifestSegment, ...]:
        if not any(segment.is_target for segment in segments):
            raise UserError("no segment is a target (all have condition true or loss false)")
        return segments


@dataclass(frozen=True)
class ManifestLine:
    """A checked line and its number in the file, from 1."""

    number: int
    document: ManifestDocument


class Manifest(DocumentsWithPlaces):
    """The documents of a manifest. Media are read on first use and kept; documents with the same file share it."""

    def __init__(self, path: str | Path, limit: int | None = None):
        """Checks every line. Raises UserError, which names file, line number and key, for the first that is wrong."""
        self.path = Path(path)
        self.lines = read(self.path)[:limit]
        self._media: dict[tuple[str, str], Any] = {}

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Document:
        """Document `index`. UserError, which names the line, for media that are missing or cannot be read."""
        line = self.lines[index]
        return Document(
            tuple(
                self._segment(segment, line.number, position) for position, segment in enumerate(line.document.segments)
            )
        )

    def place(self, index: int) -> str:
        return f"{self.path}:{self.lines[index].number}"

    def texts(self, index: int) -> list[str]:
        return [segment.text for segment in self.lines[index].document.segments if segment.text is not None]

    @cached_property
    def modalities(self) -> frozenset[str]:
        """The continuous modalities that occur in the manifest."""
        found = {segment.modality for line in self.lines for segment in line.document.segments}
        return frozenset(found - {"text"})

    def media(self, name: str) -> MediaFiles:
        """The different media of modality `name`, in the order of their first occurrence."""
        return MediaFiles(self, name)

    def open(self, name: str, file: str, number: int, position: int) -> Any:
        """The medium in `file`, read once. Line `number` and segment `position` are for the error message."""
        if (name, file) not in self._media:
            self._media[name, file] = self._read(name, file, number, position)
        return self._media[name, file]

    def _read(self, name: str, file: str, number: int, position: int) -> Any:
        path = self.path.parent / file
        try:
            return modality(name).load(path)
        except (UserError, OSError) as error:  # OSError: the name is not a valid file name
            reason = one_line(error)
            raise UserError(f"{self.path}:{number}: segments.{position}.{name}: {reason}") from None

    def _segment(self, segment: ManifestSegment, number: int, position: int) -> Segment:
        flags = {"condition": segment.condition, "loss": segment.is_target}
        if segment.text is not None:
            return Text(segment.text, **flags)
        content = self.open(segment.modality, getattr(segment, segment.modality), number, position)
        return modality(segment.modality).segment(content, **flags)


class MediaFiles(Sequence):
    """The different media files of one modality in a manifest, read on first use."""

    def __init__(self, manifest: Manifest, name: str):
        self.manifest, self.name = manifest, name

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        file, number, position = self.files[index]
        return self.manifest.open(self.name, file, number, position)

    @cached_property
    def files(self) -> list[tuple[str, int, int]]:
        """(file, line number, segment position) of the first occurrence of each file."""
        first: dict[str, tuple[str, int, int]] = {}
        for line in self.manifest.lines:
            for position, segment in enumerate(line.document.segments):
                file = getattr(segment, self.name)
                if file is not None:
                    first.setdefault(file, (file, line.number, position))
        return list(first.values())


def read(path: str | Path) -> list[ManifestLine]:
    """Parse and check all lines, without reading media. Empty lines are skipped. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and a manifest is a JSONL file")
    if not path.is_file():
        raise UserError(f"{path}: no such manifest")
    refuse_compressed(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text at byte {error.start}"
        raise UserError(f"{path}: {reason if path.suffix.lower() == '.jsonl' else advice(str(path))}") from None
    if path.suffix.lower() != ".jsonl" and not text.lstrip().startswith("{"):
        raise UserError(f"{path}: {advice(str(path))}")
    # not splitlines(): JSON strings may hold U+2028 and its like unescaped
    lines = [parse_line(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: the manifest is empty")
    return lines


def validate(path: str | Path, *, quiet: bool = True) -> DataReport:
    """Read every line of a manifest and every file it names, and count them. Raises UserError at the first error.

    Unless `quiet`, stderr shows the progress.
    """
    manifest = Manifest(path)
    report = DataReport(num_documents=len(manifest))
    for line in manifest.lines:
        for segment in line.document.segments:
            report.num_segments[segment.modality] += 1
            report.num_characters += len(segment.text or "")
    media = {name: MediaFiles(manifest, name).files for name in report.num_files}
    with Progress("reading", "files", sum(map(len, media.values())), quiet=quiet) as progress:
        for name, files in media.items():
            report.num_files[name] = len(files)
            for file, number, position in files:
                medium = manifest._read(name, file, number, position)  # not kept: it may exceed the memory
                report.add_medium(medium, f"{path}:{number}")
                progress.add(1)
    return report


def preview(path: str | Path, num_documents: int = 5) -> list[str]:
    """The first documents in one line each, conditions in brackets: `3: [text 'a red apple'] image apple.png 64×64`."""
    manifest = Manifest(path)
    return [
        f"{line.number}: "
        + " ".join(
            f"[{_show(manifest, line, position)}]" if segment.condition else _show(manifest, line, position)
            for position, segment in enumerate(line.document.segments)
        )
        for line in islice(manifest.lines, num_documents)
    ]


def _show(manifest: Manifest, line: ManifestLine, position: int) -> str:
    segment = line.document.segments[position]
    if segment.text is not None:
        return f"text {segment.text if len(segment.text) <= 60 else segment.text[:57] + '...'!r}"
    file = getattr(segment, segment.modality)
    content = manifest.open(segment.modality, file, line.number, position)
    return f"{segment.modality} {file} {modality(segment.modality).describe(content)}"


class _TwoOfAKey(UserError):
    """A JSON object has a key twice; `json` would silently keep the last."""


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _TwoOfAKey(f"key {name!r} appears twice")
    return dict(pairs)


def parse_line(path: str | Path, number: int, line: str) -> ManifestLine:
    """Parse and check line `number` of the manifest at `path`. Raises UserError, which names path, line and key."""
    try:
        raw = json.loads(line, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from None
    except (_TwoOfAKey, RecursionError) as error:
        raise UserError(f"{path}:{number}: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}:{number}: a line is a JSON object with the key 'segments', got {line.strip()[:60]!r}")
    flat = [key for key in raw if key in KEYS]
    if "segments" not in raw and flat:
        example = '{"segments": [{"text": "a cat", "condition": true}, {"image": "cat.png"}]}'
        raise UserError(f"{path}:{number}: {flat[0]!r} is not inside 'segments'; a line is like {example}")
    try:
        return ManifestLine(number, ManifestDocument.model_validate(raw))
    except ValidationError as error:
        raise UserError(f"{path}:{number}: {describe(error, ManifestDocument)}") from None
