"""Jobs of encoding, plans that divide them into parts, and the parts that a folder already has.

Place in the flow: 2, below `parts.py`. A plan identifies the shards; a folder with another plan is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ...config import SourceConfig
from ...errors import UserError
from ...types import Document
from ..readers import JsonLines, is_manifest, open_path, signature
from ..readers.files import Location
from ..readers.rows import TASKS
from ..script import apply_prompt_format
from ..shards import INDEX, DType, inside, read_index, write_file
from ..sources import documents

PLAN = "plan.json"
SMALLEST, LARGEST, PARTS = 256, 16384, 64
"""Smallest and largest number of documents per part, and the number of parts between these bounds."""
OnError = Literal["stop", "skip"]


class Part(BaseModel):
    """The documents [start, stop) of source number `source`; they become one shard file."""

    model_config = ConfigDict(frozen=True)

    number: int
    source: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}.array_record"

    @property
    def record(self) -> str:
        """Name of the PartRecord file, whose presence means that the part is finished."""
        return f"part-{self.number:06d}.json"


class PartRecord(BaseModel):
    """Content of one part. lengths: most positions of each document; skipped: (place, reason) of those left out."""

    model_config = ConfigDict(frozen=True)

    lengths: list[int]
    num_segments: dict[str, int]
    num_latents: dict[str, int]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class Job:
    """The input of a worker; picklable. tokenizers: modality -> folder. layout: the model's `prompt` format."""

    sources: tuple[SourceConfig, ...]
    tokenizers: dict[str, str]
    out: str
    dtype: DType = "float32"
    on_error: OnError = "stop"
    layout: str = "document"
    threads: int = 1

    @property
    def folder(self) -> Location:
        return Location.of(self.out)

    @cached_property
    def documents(self) -> list[Sequence[Document]]:
        """The training documents of each source."""
        return [apply_prompt_format(documents(config), self.layout, config.label) for config in self.sources]

    def into(self, out: str | Path) -> Job:
        """The same job with its shards in another folder."""
        moved = replace(self, out=str(out))
        vars(moved)["documents"] = self.documents  # opened once
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "documents"}


def make_plan(job: Job, tokenizers: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the shards, as JSON: sources and their files, tokenizers, number type, size of the parts."""
    counts = [len(found) for found in job.documents]
    if not sum(counts):
        raise UserError(f"{', '.join(config.label for config in job.sources)}: no documents")
    sources = [
        {
            "source": _identity(config),
            "signature": signature(config.path or config.manifest) if config.name is None else "",
            "num_documents": count,
        }
        for config, count in zip(job.sources, counts, strict=True)
    ]
    return {
        "sources": sources,
        "tokenizers": {name: tokenizer.fingerprint() for name, tokenizer in sorted(tokenizers.items())},
        "dtype": job.dtype,
        "layout": job.layout,
        "part_size": min(LARGEST, max(SMALLEST, -(-sum(counts) // PARTS))),
    }


def _identity(config: SourceConfig) -> dict[str, Any]:
    """The fields that decide which documents a source has, as JSON; without a `held_out` in another place."""
    elsewhere = {"held_out"} if isinstance(config.held_out, str) else set()
    return config.model_dump(mode="json", exclude_defaults=True, exclude={"weight", "noise"} | elsewhere)


def shared_folder(job: Job, tokenizers: Mapping[str, Any], shared: Path) -> Path:
    """The folder below `shared` for the shards of `job`, the same for every run with the same data and tokenizers.

    Returns `job.out` itself if it holds shards already, or if the media are in files that the signature of the source
    does not cover, so that changes of them would not be noticed.
    """
    own = Path(job.out)
    if own.is_dir() or any(names_other_files(config) for config in job.sources):
        return own
    plan = json.dumps(make_plan(job, tokenizers), sort_keys=True)
    return shared / f"{own.name}-{hashlib.sha256(plan.encode()).hexdigest()[:16]}"


def names_other_files(config: SourceConfig) -> bool:
    """Whether the documents of a path name files of media beside them: JSONL lines, and rows that hold paths."""
    if config.path is None or is_manifest(config.path):
        return config.path is not None
    opened = open_path(config.path, config.columns)
    if isinstance(opened, JsonLines):
        return True
    columns, _ = TASKS[config.task]
    return any(isinstance(opened.read(0, column), Location) for column in columns)


def parts_of(plan: Mapping[str, Any]) -> list[Part]:
    size, found = plan["part_size"], []
    for number, source in enumerate(plan["sources"]):
        for start in range(0, source["num_documents"], size):
            stop = min(start + size, source["num_documents"])
            found.append(Part(number=len(found), source=number, start=start, stop=stop))
    return found


def begin(folder: Location, plan: Mapping[str, Any]) -> list[Part]:
    """Write `plan` to `folder` if it has none, and return the parts that are not encoded yet.

    Raises UserError if the folder holds shards of another plan, naming the difference, or other files.
    """
    path = inside(folder, PLAN)
    known: dict[str, Any] | None = None
    if folder.system.exists(inside(folder, INDEX).path):
        known = read_index(folder).plan
    elif folder.system.exists(path.path):
        known = json.loads(path.read())
    if known is not None:
        for key, value in plan.items():
            if known.get(key) != value:
                raise UserError(f"{folder}: holds shards made from other {key}; choose another folder, or delete it")
        return [part for part in parts_of(plan) if not _is_finished(folder, part)]
    if folder.is_folder() and any(not name.startswith(".") for name in _names(folder)):
        raise UserError(f"{folder}: is not empty, and holds no shards; choose another folder")
    folder.system.makedirs(folder.path, exist_ok=True)
    write_file(path, json.dumps(plan, indent=1) + "\n")
    return parts_of(plan)


def _names(folder: Location) -> list[str]:
    return [path.rstrip("/").rpartition("/")[2] for path in folder.system.ls(folder.path, detail=False)]


def _is_finished(folder: Location, part: Part) -> bool:
    exists = folder.system.exists
    return exists(inside(folder, INDEX).path) or exists(inside(folder, part.record).path)
