"""The registry: where documents and media come from, by name (embedded sets) or by path (JSONL manifests).

Place in the flow: 2, `SourceConfig` ──▶ sequences of documents (for the model) or media (for a tokenizer). All are
lazy, with `len` and random access; asking again gives documents that refer to the same media objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..config import SourceConfig
from ..config.base import did_you_mean
from ..types import Document
from .embedded.tasks import EMBEDDED
from .manifest import Manifest
from .task_source import ALL, SPLITS, Source, SourceInfo, check_split
from .warp import with_warped_copies

__all__ = ["ALL", "SPLITS", "ManifestSource", "Source", "SourceInfo", "documents", "get_source", "list_sources"]
__all__ += ["media", "open_source"]


@dataclass(frozen=True)
class ManifestSource:
    """A JSONL manifest (`data.manifest`): documents as its lines say, in "train"; those of another are "held_out"."""

    path: str
    held_out: str | None = None
    tasks: tuple[str, ...] = (ALL,)

    def document_source(self, task: str = ALL, split: str = "train", limit: int | None = None) -> Sequence[Document]:
        """Documents of the first `limit` lines (`held_out`: of all).

        Raises ValueError for a task other than "all", and for wrong lines.
        """
        check_split(split)
        if task != ALL:
            raise ValueError(
                f"manifest {self.path}: its lines say what is the task, use task 'all' instead of {task!r}"
            )
        if split == "train":
            return _open_manifest(self.path, limit)
        return _open_manifest(self.held_out, None) if self.held_out else ()

    def media(self, modality: str, split: str = "train", limit: int | None = None) -> Sequence:
        check_split(split)
        return _open_manifest(self.path, limit).media(modality) if split == "train" else ()

    @property
    def modalities(self) -> frozenset[str]:
        """The continuous modalities of its training documents."""
        return _open_manifest(self.path, None).modalities


def open_source(config: SourceConfig) -> Source | ManifestSource:
    """The source a recipe names. Raises ValueError for an unknown name, with the nearest known one."""
    return ManifestSource(config.manifest, config.held_out) if config.manifest is not None else get_source(config.name)


def get_source(name: str) -> Source:
    """An embedded source by name. Raises ValueError, with the nearest known name."""
    if name not in EMBEDDED:
        raise ValueError(f"no data source {name!r}{did_you_mean(name, EMBEDDED)}")
    return EMBEDDED[name]


def documents(config: SourceConfig, split: str = "train") -> Sequence[Document]:
    """The documents a recipe asks for: source, task and limit, and in "train" the warped copies."""
    if split == "train" and config.warped_copies:
        return _warped(config)
    return open_source(config).document_source(config.task, split, config.limit)


def modalities_in(config: SourceConfig) -> frozenset[str]:
    """The continuous modalities that a source has; nothing is loaded but the lines of a manifest."""
    return open_source(config).modalities


def media(config: SourceConfig, modality: str, split: str = "train") -> Sequence:
    """The media a tokenizer recipe asks for. Raises ValueError if the source has none of this modality in "train"."""
    found = open_source(config).media(modality, split, config.limit)
    if split == "train" and not len(found):
        raise ValueError(f"data source {config.name or config.manifest!r} holds no {modality}")
    return found


def list_sources() -> list[SourceInfo]:
    """What `latentlm data list` shows; nothing is loaded or spoken for it."""
    return [source.info() for source in EMBEDDED.values()]


@cache
def _warped(config: SourceConfig) -> Sequence[Document]:
    found = open_source(config).document_source(config.task, "train", config.limit)
    return with_warped_copies(found, config.warped_copies)


@cache
def _open_manifest(path: str, limit: int | None) -> Manifest:
    return Manifest(path, limit)
