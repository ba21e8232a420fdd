"""Sources ──▶ shards: the plan, one part of it, and the index at the end; `encode_workers.py` runs it in parallel.

Place in the flow: 2, behind `latentlm encode`, and before a training run that names a path. The plan cuts the documents
of all sources into parts, one shard file each. A part is written whole or not at all, with a record beside it that says
what is in it; so an encoding that was killed goes on with the parts that are missing, and nothing is encoded twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..config import SourceConfig
from ..tokenizers.load import load_tokenizer
from ..types import Document, Text
from .cache import LatentCache, media_hash
from .placed import place_of
from .readers import signature
from .readers.files import Location
from .shards import (
    INDEX,
    DType,
    ShardIndex,
    TokenizerRecord,
    inside,
    most_positions,
    pack_record,
    read_index,
    write_file,
    write_index,
    write_records,
)
from .sources import documents

PLAN, SKIPPED = "plan.json", "skipped.jsonl"
BATCH = 64
"""Documents whose media are encoded together."""
SMALLEST, LARGEST, PARTS = 256, 16384, 64
"""Documents of a part: so many that there are about PARTS of them, within these bounds."""
OnError = Literal["stop", "skip"]


class Part(BaseModel):
    """The documents [start, stop) of source number `source`, and the name of their shard."""

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
        """The file that says that the part is finished, and what is in it."""
        return f"part-{self.number:06d}.json"


class PartRecord(BaseModel):
    """What one part holds. lengths: the most positions of each document; skipped: (place, reason) of each left out."""

    model_config = ConfigDict(frozen=True)

    lengths: list[int]
    num_segments: dict[str, int]
    num_latents: dict[str, int]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; picklable. tokenizers: modality -> folder. layout: "document", or a model's prompt."""

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
        from .script import laid_out

        return [laid_out(documents(config), self.layout, config.label) for config in self.sources]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "documents"}


@dataclass
class Summary:
    """What an encoding ended with. skipped: reason -> places, in order."""

    index: ShardIndex
    num_done_before: int
    skipped: dict[str, list[str]] = field(default_factory=dict)


# ------------------------------------------------------------------ plan


def make_plan(job: Job, tokenizers: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the shards, as JSON: sources and their files, tokenizers, number type, size of the parts."""
    counts = [len(found) for found in job.documents]
    if not sum(counts):
        raise ValueError(f"{', '.join(config.label for config in job.sources)}: no documents")
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
    """The keys that say which documents these are. Held-out documents in another place are none of them."""
    elsewhere = {"held_out"} if isinstance(config.held_out, str) else set()
    return config.model_dump(mode="json", exclude_defaults=True, exclude={"weight", "noise"} | elsewhere)


def parts_of(plan: Mapping[str, Any]) -> list[Part]:
    size, found = plan["part_size"], []
    for number, source in enumerate(plan["sources"]):
        for start in range(0, source["num_documents"], size):
            stop = min(start + size, source["num_documents"])
            found.append(Part(number=len(found), source=number, start=start, stop=stop))
    return found


def begin(folder: Location, plan: Mapping[str, Any]) -> list[Part]:
    """The parts that are still to be encoded, once `plan` lies in `folder`.

    Raises ValueError where the folder holds shards of another plan, naming what differs, or other files.
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
                raise ValueError(f"{folder}: holds shards made from other {key}; choose another folder, or delete it")
        return [part for part in parts_of(plan) if not _is_finished(folder, part)]
    if folder.is_folder() and any(not name.startswith(".") for name in _names(folder)):
        raise ValueError(f"{folder}: is not empty, and holds no shards; choose another folder")
    folder.system.makedirs(folder.path, exist_ok=True)
    write_file(path, json.dumps(plan, indent=1) + "\n")
    return parts_of(plan)


def _names(folder: Location) -> list[str]:
    return [path.rstrip("/").rpartition("/")[2] for path in folder.system.ls(folder.path, detail=False)]


def _is_finished(folder: Location, part: Part) -> bool:
    exists = folder.system.exists
    return exists(inside(folder, INDEX).path) or exists(inside(folder, part.record).path)


# ------------------------------------------------------------------ one part


class PartEncoder:
    """Encodes parts of a job: opens its sources and tokenizers once. One in each worker."""

    def __init__(self, job: Job, tokenizers: Mapping[str, Any] | None = None):
        self.job = job
        self.tokenizers = dict(tokenizers) if tokenizers is not None else load_tokenizers(job.tokenizers)

    def __call__(self, part: Part, report: Callable[[int], None] = lambda number: None) -> None:
        """Write the shard of `part`, then its record. `report` is told how many documents more have been read.

        Raises ValueError naming the document that cannot be read or encoded, unless the job skips those.
        """
        self._lengths: list[int] = []
        self._segments: dict[str, int] = {}
        self._latents: dict[str, int] = {}
        self._skipped: list[tuple[str, str]] = []
        write_records(inside(self.job.folder, part.name), self._records(part, report))
        record = PartRecord(
            lengths=self._lengths,
            num_segments=self._segments,
            num_latents=self._latents,
            skipped=self._skipped,
        )
        write_file(inside(self.job.folder, part.record), record.model_dump_json() + "\n")

    def _records(self, part: Part, report: Callable[[int], None]) -> Iterator[bytes]:
        for start in range(part.start, part.stop, BATCH):
            indices = range(start, min(start + BATCH, part.stop))
            for document, keys in self._encoded(part.source, indices):
                yield pack_record(document, self.job.dtype, keys)
                self._count(document)
            report(len(indices))

    def _encoded(self, source: int, indices: range) -> list[tuple[Document, list[str | None]]]:
        """The documents of these numbers that can be read, media as latents, and the keys of their media."""
        read = []
        for index in indices:
            document = self._try(source, index, lambda i: self.job.documents[source][i])
            if document is not None:
                keys = [None if isinstance(s, Text) else media_hash(s.modality, [s.content]) for s in document.segments]
                read.append((index, document, keys))
        _share(read)
        cache = LatentCache(self.tokenizers, batch_size=BATCH)
        try:
            cache.prepare(document for _, document, _ in read)
        except ValueError:  # of one of them: each alone says which
            cache = LatentCache(self.tokenizers)
        found = []
        for index, document, keys in read:
            resolved = self._try(source, index, lambda _, d=document: cache.resolve(d))
            if resolved is not None:
                found.append((resolved, keys))
        return found

    def _try(self, source: int, index: int, action: Callable[[int], Document]) -> Document | None:
        """`action(index)`; None for a document that cannot be read and is skipped."""
        try:
            document = action(index)
            for segment in document.segments:
                if isinstance(segment, Text):
                    segment.text.encode("utf-8")
            return document
        except ValueError as error:
            where = place_of(self.job.documents[source], index, self.job.sources[source].label)
            said = str(error)
            if self.job.on_error == "stop":
                raise ValueError(said if said.startswith(where) else f"{where}: {said}") from None
            self._skipped.append((where, said.removeprefix(where).lstrip(": ")))
            return None

    def _count(self, document: Document) -> None:
        self._lengths.append(most_positions(document))
        for segment in document.segments:
            name = segment.modality
            self._segments[name] = self._segments.get(name, 0) + 1
            if not isinstance(segment, Text):
                self._latents[name] = self._latents.get(name, 0) + len(segment.content)


def load_tokenizers(folders: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizers of a job by modality, on the CPU."""
    return {modality: load_tokenizer(folder) for modality, folder in folders.items()}


def _share(read: list[tuple[int, Document, list[str | None]]]) -> None:
    """Let equal media be one object, in place: a cache encodes each object once."""
    known: dict[str, Any] = {}
    for place, (index, document, keys) in enumerate(read):
        segments = tuple(
            segment if key is None else _with_content(segment, known.setdefault(key, segment.content))
            for segment, key in zip(document.segments, keys, strict=True)
        )
        read[place] = (index, document.with_segments(segments), keys)


def _with_content(segment: Any, content: Any) -> Any:
    return type(segment)(content, condition=segment.condition, loss=segment.loss)


# ------------------------------------------------------------------ the end


def finish(job: Job, plan: Mapping[str, Any], tokenizers: Mapping[str, Any], num_done_before: int) -> Summary:
    """The index of all parts, written last; what it replaces is removed. ValueError where no document is left."""
    folder = job.folder
    if folder.system.exists(inside(folder, INDEX).path):
        index = read_index(folder)
        return Summary(index, index.num_documents + index.num_skipped, _read_skipped(folder))
    parts = parts_of(plan)
    records = [PartRecord.model_validate_json(inside(folder, part.record).read()) for part in parts]
    lengths = np.array([length for record in records for length in record.lengths], np.int32)
    skipped = [entry for record in records for entry in record.skipped]
    if not len(lengths):
        raise ValueError(f"{folder}: none of {len(skipped)} documents can be read; {': '.join(skipped[0])}")
    index = ShardIndex(
        num_documents=len(lengths),
        num_segments=_sums(record.num_segments for record in records),
        num_latents=_sums(record.num_latents for record in records),
        num_skipped=len(skipped),
        longest=int(lengths.max()),
        dtype=job.dtype,
        tokenizers={
            name: TokenizerRecord(
                fingerprint=tokenizer.fingerprint(),
                latent_dim=tokenizer.latent_dim,
                posterior=tokenizer.config.posterior.kind,
            )
            for name, tokenizer in tokenizers.items()
        },
        plan=dict(plan),
        parts=[(part.name, len(record.lengths)) for part, record in zip(parts, records, strict=True)],
    )
    lines = (json.dumps({"place": place, "reason": reason}, ensure_ascii=False) for place, reason in skipped)
    if skipped:
        write_file(inside(folder, SKIPPED), "".join(f"{line}\n" for line in lines))
    write_index(folder, index, lengths)
    for name in (PLAN, *(part.record for part in parts)):
        folder.system.rm_file(inside(folder, name).path)
    return Summary(index, num_done_before, _by_reason(skipped))


def _sums(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _by_reason(skipped: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for place, reason in skipped:
        found.setdefault(reason, []).append(place)
    return found


def _read_skipped(folder: Location) -> dict[str, list[str]]:
    path = inside(folder, SKIPPED)
    if not folder.system.exists(path.path):
        return {}
    lines = [json.loads(line) for line in path.read().decode("utf-8").splitlines()]
    return _by_reason([(line["place"], line["reason"]) for line in lines])
