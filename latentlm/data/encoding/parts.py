"""One part of an encoding: documents ──▶ a shard file; at the end, the index of all parts.

Place in the flow: 2, between `plan.py` and `workers.py`, which runs it in one process or several. A part is written
atomically, followed by a record of its content. An encoding that was killed continues with the missing parts; finished
ones are not encoded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UserError
from ...tokenizers.load import load_tokenizer
from ...types import Document, Text
from ..cache import LatentCache
from ..formats import check_unicode
from ..latent_files import media_hash
from ..placed import place_of
from ..readers.files import Location
from ..shards import (
    INDEX,
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
from .plan import PLAN, Job, Part, PartRecord, parts_of

SKIPPED = "skipped.jsonl"
BATCH = 64
"""Documents whose media are encoded together."""


@dataclass
class Summary:
    """The result of an encoding. skipped: reason -> places of the documents left out, in order."""

    index: ShardIndex
    num_done_before: int
    skipped: dict[str, list[str]] = field(default_factory=dict)


# ------------------------------------------------------------------ one part


class PartEncoder:
    """Encodes parts of a job. Opens its sources and tokenizers once; each worker has one."""

    def __init__(self, job: Job, tokenizers: Mapping[str, Any] | None = None):
        self.job = job
        self.tokenizers = dict(tokenizers) if tokenizers is not None else load_tokenizers(job.tokenizers)

    def __call__(self, part: Part, report: Callable[[int], None] = lambda number: None) -> None:
        """Write the shard of `part`, then its record. Calls report(number) after each batch of documents.

        Raises UserError for a document that cannot be read or encoded, unless the job skips those.
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
            for document, record in self._encoded(part.source, indices):
                yield record
                self._count(document)
            report(len(indices))

    def _encoded(self, source: int, indices: range) -> list[tuple[Document, bytes]]:
        """The documents with the given numbers, media as latents, and their records; without those that are skipped."""
        read = []
        for index in indices:
            document = self._try(source, index, lambda i: _encodable(self.job.documents[source][i]))
            if document is not None:
                keys = [None if isinstance(s, Text) else media_hash(s.modality, [s.content]) for s in document.segments]
                read.append((index, document, keys))
        _share(read)
        cache = LatentCache(self.tokenizers, batch_size=BATCH)
        try:
            cache.prepare([document for _, document, _ in read])
        except UserError:  # one document is wrong: encode each alone to find it
            cache = LatentCache(self.tokenizers)
        found = []
        for index, document, keys in read:
            packed = self._try(source, index, lambda _, d=document, k=keys: self._packed(cache.resolve(d), k))
            if packed is not None:
                found.append(packed)
        return found

    def _packed(self, resolved: Document, keys: list[str | None]) -> tuple[Document, bytes]:
        return resolved, pack_record(resolved, self.job.dtype, keys)

    def _try(self, source: int, index: int, action: Callable[[int], Any]) -> Any:
        """`action(index)`, or None if it raises UserError and the job skips such documents."""
        try:
            return action(index)
        except UserError as error:
            where = place_of(self.job.documents[source], index, self.job.sources[source].label)
            message = str(error)
            if self.job.on_error == "stop":
                raise UserError(message if message.startswith(where) else f"{where}: {message}") from None
            self._skipped.append((where, message.removeprefix(where).lstrip(": ")))
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


def _encodable(document: Document) -> Document:
    """`document`. UserError for a text that is not Unicode."""
    for segment in document.segments:
        if isinstance(segment, Text):
            check_unicode(segment.text)
    return document


def _share(read: list[tuple[int, Document, list[str | None]]]) -> None:
    """Replace equal media by one object, in place, so that the cache encodes it once."""
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
    """Write the index of all parts and remove the plan and the records. UserError if all documents were skipped."""
    folder = job.folder
    if folder.system.exists(inside(folder, INDEX).path):
        index = read_index(folder)
        return Summary(index, index.num_documents + index.num_skipped, _read_skipped(folder))
    parts = parts_of(plan)
    records = [PartRecord.model_validate_json(inside(folder, part.record).read()) for part in parts]
    lengths = np.array([length for record in records for length in record.lengths], np.int32)
    skipped = [entry for record in records for entry in record.skipped]
    if not len(lengths):
        raise UserError(f"{folder}: none of {len(skipped)} documents can be read; {': '.join(skipped[0])}")
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
