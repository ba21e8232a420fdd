"""The registry: where documents and media come from, by name (embedded sets), manifest, path or shards.

Place in the flow: 2, `SourceConfig` ──▶ sequences of documents (for the model) or media (for a tokenizer), lazy, with
`len` and random access. Embedded sets and manifests stay in memory: their documents always refer to the same media
objects. Paths and shards are read from disk each time (`readers/`, `shards.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..config import SourceConfig
from ..config.base import did_you_mean
from ..errors import UserError
from ..types import Document
from .embedded.tasks import EMBEDDED
from .manifest import Manifest
from .placed import PlacedDocuments, View, Without, held_out_numbers
from .readers import JsonLines, open_path
from .readers.jsonl import JsonLinesMedia
from .readers.rows import TASKS, RowDocuments, RowMedia, Rows
from .shards import ShardDocuments
from .task_source import ALL, SPLITS, Lazy, Source, SourceInfo, check_split
from .warp import with_augmented_copies

__all__ = ["ALL", "SPLITS", "ManifestSource", "Source", "SourceInfo", "documents", "get_source", "list_sources"]
__all__ += ["DiskSource", "media", "open_source"]


@dataclass(frozen=True)
class ManifestSource:
    """A JSONL manifest (`data.manifest`) as the split "train"; the manifest `held_out` is the split "held_out"."""

    path: str
    held_out: str | None = None
    tasks: tuple[str, ...] = (ALL,)

    def document_source(self, task: str = ALL, split: str = "train", limit: int | None = None) -> Sequence[Document]:
        """The documents of the first `limit` lines; held-out ones are never limited.

        Raises UserError for a task other than "all", and for wrong lines.
        """
        check_split(split)
        if task != ALL:
            raise UserError(
                f"manifest {self.path}: its lines say what each document is; use task 'all' instead of {task!r}"
            )
        if split == "train":
            return _open_manifest(self.path, limit)
        return _open_manifest(self.held_out, None) if self.held_out else ()

    def media(self, modality: str, split: str = "train", limit: int | None = None) -> Sequence:
        check_split(split)
        if split == "train":
            return _open_manifest(self.path, limit).media(modality)
        return _open_manifest(self.held_out, None).media(modality) if self.held_out else ()

    def holds(self, modality: str) -> bool:
        """Whether its training documents have media of this modality."""
        return modality in _open_manifest(self.path, None).modalities


@dataclass(frozen=True)
class DiskSource:
    """A path or shards, read from disk on demand. Held-out documents are another path, or a part of its own."""

    config: SourceConfig
    tasks: tuple[str, ...] = (ALL,)

    def document_source(self, task: str = ALL, split: str = "train", limit: int | None = None) -> Sequence[Document]:
        """The documents of the first `limit` rows; held-out ones are never limited. Raises UserError as the readers."""
        check_split(split)
        held_out = self.config.held_out
        if isinstance(held_out, str):
            path = _path(self.config) if split == "train" else held_out
            found = self._open(path, task)
        else:
            found = self._part(self._open(_path(self.config), task), split)
        return View(found, range(min(limit, len(found)))) if split == "train" and limit is not None else found

    def holds(self, modality: str) -> bool:
        """Whether its rows or lines have media of this modality. False for shards, whose media are latents already."""
        if self.config.path is None:
            return False
        opened = open_path(self.config.path, self.config.columns)
        if isinstance(opened, JsonLines):
            return opened.holds(modality)
        return self.config.task in TASKS and modality in TASKS[self.config.task][0]

    def media(self, modality: str, split: str = "train", limit: int | None = None) -> Sequence:
        """The media of a path, decoded each time they are asked for, without those of held-out documents."""
        check_split(split)
        held_out, numbers = self.config.held_out, None
        if self.config.path is None or (split != "train" and held_out is None):
            return ()
        path = held_out if split != "train" and isinstance(held_out, str) else self.config.path
        opened = open_path(path, self.config.columns)
        if isinstance(held_out, int | float):
            numbers = held_out_numbers(len(opened), held_out, self.config.label)
        found = _media_of(opened, modality, numbers, split)
        return found if limit is None or split != "train" else Lazy(min(limit, len(found)), found.__getitem__)

    def _open(self, path: str, task: str) -> PlacedDocuments:
        if self.config.shards is not None:
            return ShardDocuments(path)
        opened = open_path(path, self.config.columns)
        if not isinstance(opened, JsonLines):
            return RowDocuments(opened, task, path)
        if task != ALL:
            raise UserError(f"{path}: its lines say what each document is; use task 'all' instead of {task!r}")
        return opened

    def _part(self, documents: PlacedDocuments, split: str) -> Sequence[Document]:
        if self.config.held_out is None:
            return documents if split == "train" else ()
        numbers = held_out_numbers(len(documents), self.config.held_out, self.config.label)
        return Without(documents, numbers) if split == "train" else View(documents, numbers)


def _media_of(rows: Rows, modality: str, held_out: np.ndarray | None, split: str) -> Sequence:
    """The media of one modality in `rows`: in "train" without those of the documents `held_out`, else those alone."""
    if isinstance(rows, JsonLines):
        others = held_out
        if split != "train" and held_out is not None:
            others = np.setdiff1d(np.arange(len(rows)), held_out)
        return JsonLinesMedia(rows, modality, others)
    found = RowMedia(rows, modality)
    if held_out is None:
        return found
    return Without(found, held_out) if split == "train" else View(found, held_out)


def _path(config: SourceConfig) -> str:
    return config.path if config.path is not None else config.shards


def open_source(config: SourceConfig) -> Source | ManifestSource | DiskSource:
    """The source that a recipe names. UserError for an unknown name, with the nearest known one."""
    if config.is_on_disk:
        return DiskSource(config)
    return ManifestSource(config.manifest, config.held_out) if config.manifest is not None else get_source(config.name)


def get_source(name: str) -> Source:
    """An embedded source by name. UserError for an unknown name, with the nearest known one."""
    if name not in EMBEDDED:
        raise UserError(f"no data source {name!r}{did_you_mean(name, EMBEDDED)}")
    return EMBEDDED[name]


def documents(config: SourceConfig, split: str = "train") -> Sequence[Document]:
    """The documents of a source as the recipe selects them: task and limit, and in "train" the augmented copies."""
    if split == "train" and config.augmented_copies:
        return _warped(config.name, config.manifest, config.task, config.limit, config.augmented_copies)
    return open_source(config).document_source(config.task, split, config.limit)


def holds(config: SourceConfig, modality: str) -> bool:
    """Whether a source has media of this modality. Decodes none of them."""
    return open_source(config).holds(modality)


def media(config: SourceConfig, modality: str, split: str = "train") -> Sequence:
    """The media of a source that a tokenizer learns from. UserError if "train" has none of this modality."""
    found = open_source(config).media(modality, split, config.limit)
    if split == "train" and not len(found):
        raise UserError(f"data source {config.label!r} holds no {modality}")
    return found


def list_sources() -> list[SourceInfo]:
    """The lines of `latentlm data list`. Loads no data and synthesises no speech."""
    return [source.info() for source in EMBEDDED.values()]


@cache
def _warped(name: str | None, manifest: str | None, task: str, limit: int | None, copies: int) -> Sequence[Document]:
    source = get_source(name) if name is not None else ManifestSource(manifest)
    return with_augmented_copies(source.document_source(task, "train", limit), copies)


def _open_manifest(path: str, limit: int | None) -> Manifest:
    """The manifest at `path`, read once per process unless its file changes."""
    file = Path(path).absolute()
    status = file.stat() if file.is_file() else None
    return _read_manifest(path, limit, file, status and (status.st_mtime_ns, status.st_size))


@cache
def _read_manifest(path: str, limit: int | None, file: Path, version: tuple[int, int] | None) -> Manifest:
    return Manifest(path, limit)
