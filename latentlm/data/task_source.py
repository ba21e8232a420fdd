"""Embedded sources: items, tasks that make documents of them, and lazy sequences of documents and media.

Place in the flow: 2, filled in by `embedded.tasks`, reached through `sources`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..config.base import did_you_mean
from ..errors import UserError
from ..media.sound import Audio
from ..types import Document

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SPLITS = ("train", "held_out")
ALL = "all"


@dataclass(frozen=True)
class Items:
    """One kind of item in a source.

    count   (split) -> number of items
    load    (split, limit) -> the first `limit` items, all if None
    media   modality -> function that takes an item and returns its medium
    """

    count: Callable[[str], int]
    load: Callable[[str, int | None], Sequence[Any]]
    media: Mapping[str, Callable[[Any], Any]]


@dataclass(frozen=True)
class Task:
    """How an item becomes a document. `document(items, index)` may use other items, such as a voice clip."""

    items: Items
    document: Callable[[Sequence[Any], int], Document]


@dataclass(frozen=True)
class SourceInfo:
    """One entry of `latentlm data list`. sizes: number of items by split."""

    name: str
    description: str
    licence: str
    tasks: tuple[str, ...]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Source:
    """An embedded data set and its tasks."""

    name: str
    description: str
    licence: str
    table: Mapping[str, Task]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.table)

    def document_source(self, task: str = ALL, split: str = "train", limit: int | None = None) -> Sequence[Document]:
        """The documents of one task, or of all tasks one after the other; `limit` is the number of items per task.

        Raises UserError for a task or split that the source does not have.
        """
        check_split(split)
        if task != ALL and task not in self.table:
            raise UserError(f"source {self.name!r} has no task {task!r}{did_you_mean(task, (ALL, *self.tasks))}")
        chosen = self.tasks if task == ALL else (task,)
        parts = []
        for name in chosen:
            items = self.table[name].items.load(split, limit)
            parts.append(Lazy(len(items), _document_getter(self.table[name], items)))
        return parts[0] if len(parts) == 1 else Concatenated(parts)

    def media(self, modality: str, split: str = "train", limit: int | None = None) -> Sequence[PILImage | Audio]:
        """All media of one modality: the objects that the documents refer to. Empty if the source has none."""
        check_split(split)
        parts = []
        for items in self._kinds:
            if modality in items.media:
                loaded = items.load(split, limit)
                parts.append(Lazy(len(loaded), _media_getter(items.media[modality], loaded)))
        return parts[0] if len(parts) == 1 else Concatenated(parts)

    def holds(self, modality: str) -> bool:
        """Whether any of its items have media of this modality."""
        return any(modality in items.media for items in self._kinds)

    def info(self) -> SourceInfo:
        sizes = {split: max(items.count(split) for items in self._kinds) for split in SPLITS}
        return SourceInfo(self.name, self.description, self.licence, self.tasks, sizes)

    @property
    def _kinds(self) -> list[Items]:
        """The different kinds of items; several tasks may use the same one."""
        return list({id(task.items): task.items for task in self.table.values()}.values())


class Lazy(Sequence):
    """A sequence of `length` elements; each access calls `get(index)`."""

    def __init__(self, length: int, get: Callable[[int], Any]):
        self._length, self._get = length, get

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} of {self._length}")
        return self._get(index % self._length)


class Concatenated(Sequence):
    """Several sequences as one."""

    def __init__(self, parts: Sequence[Sequence]):
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"no split {split!r}, known: {', '.join(SPLITS)}")


def _document_getter(task: Task, items: Sequence) -> Callable[[int], Document]:
    return lambda index: task.document(items, index)


def _media_getter(pick: Callable, items: Sequence) -> Callable[[int], Any]:
    return lambda index: pick(items[index])
