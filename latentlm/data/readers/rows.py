"""Rows of a source ──▶ documents and media: the base class of readers of rows, and the tasks.

Place in the flow: 2, `parquet.py`, `tar.py` and `folder.py` are `Rows`; a task says which columns make a document.
Media are decoded each time they are asked for. A UserError names the file, the row or member, and the column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...config.base import did_you_mean
from ...config.modalities import modality, modality_names
from ...errors import UserError
from ...types import Document
from .. import documents as build
from ..placed import PlacedDocuments
from .files import Location

TASKS: dict[str, tuple[tuple[str, ...], Callable[..., Document]]] = {
    **{f"text_to_{name}": (("text", name), build.text_to_medium) for name in modality_names()},
    **{f"{name}_to_text": ((name, "text"), build.medium_to_text) for name in modality_names()},
    "text": (("text",), build.text),
}
"""Task -> its columns and the function that makes a document of their values, in this order."""


class Rows(ABC):
    """Rows with the columns "text" and the names of modalities. Picklable; can be read from any thread."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, index: int) -> str:
        """Where row `index` stands, for messages: file and row, or file and member."""

    @abstractmethod
    def read(self, index: int, column: str) -> bytes | str | Location:
        """The stored value: bytes (of a media file or UTF-8 text), text, or the location of a media file.

        UserError, without the place, if it is missing.
        """

    @abstractmethod
    def require(self, column: str) -> None:
        """Raise UserError, which names the source, if there is no such column."""

    def file_name(self, index: int) -> str:
        """The name of the file that row `index` is, for notices; empty where rows are parts of a file."""
        return ""

    def value(self, index: int, column: str) -> Any:
        """The text or medium of row `index`. UserError, which names place and column, if it cannot be read."""
        try:
            return decode(self.read(index, column), column, self.file_name(index))
        except UserError as error:
            place = self.place(index)
            said = str(error).removeprefix(f"{place}: ")
            raise UserError(f"{place}: {column}: {said}") from None


def decode(stored: bytes | str | Location, column: str, name: str = "") -> Any:
    """A stored value as text or medium, of a file called `name`. UserError if it cannot be decoded."""
    if column == "text":
        return _text(stored)
    if isinstance(stored, Location):
        name, stored = str(stored), stored.read()
    if not isinstance(stored, bytes):
        raise UserError(f"holds {type(stored).__name__}, expected the bytes of a file")
    return modality(column).decode(stored, name)


def _text(stored: bytes | str | Location) -> str:
    if isinstance(stored, Location):
        stored = stored.read()
    if isinstance(stored, bytes):
        try:
            stored = stored.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text at byte {error.start}") from None
    if not stored:
        raise UserError("the text is empty")
    return stored


class RowDocuments(PlacedDocuments):
    """The documents of one task over rows."""

    def __init__(self, rows: Rows, task: str, source: str):
        """Raises UserError for an unknown task and for columns that `rows` does not have."""
        if task == "all":
            tasks = _tasks_of(rows)
            command = f"in a command: --task {tasks[0]}"
            raise UserError(f"{source}: give the task, one of: {', '.join(tasks)} ({command})")
        if task not in TASKS:
            raise UserError(f"{source}: no task {task!r}{did_you_mean(task, TASKS)}")
        self.rows = rows
        self.columns, self._build = TASKS[task]
        for column in self.columns:
            rows.require(column)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        return self._build(*(self.rows.value(index, column) for column in self.columns))

    def place(self, index: int) -> str:
        return self.rows.place(index)

    def texts(self, index: int) -> list[str]:
        return [self.rows.value(index, "text")]


def _tasks_of(rows: Rows) -> list[str]:
    """The tasks whose columns `rows` has. Raises UserError, which names the missing columns, if there are none."""
    found: list[str] = []
    missing: list[UserError] = []
    for task, (columns, _) in TASKS.items():
        try:
            for column in columns:
                rows.require(column)
            found.append(task)
        except UserError as error:
            missing.append(error)
    if not found:
        raise missing[-1]
    return found


class RowMedia(Sequence):
    """The media of one modality of rows."""

    def __init__(self, rows: Rows, name: str):
        rows.require(name)
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        return self.rows.value(index, self.name)


def named_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Column -> its name in the file, by default the same."""
    return {name: columns.get(name, name) for name in ("text", *modality_names())}
