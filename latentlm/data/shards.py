"""Shards: documents whose media are latents, in files that are read by index (format: docs/data_format.md).

Place in the flow: 2, written by `encoding/`, read by training. A folder holds ArrayRecord files of a few thousand
documents each, `index.json`, and `lengths.npy`. Only the document ranges of the files stay in memory.
Files behind a URL are copied to the cache folder when they are first read, and stay there.
Legend: `N` latents, `C` channels, `F` features.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ..config import describe
from ..config.modalities import modality
from ..errors import UserError
from ..types import Document, Latents, Segment, Text
from ..weights import replacing, write_text
from .cache_dir import default_cache_dir
from .placed import PlacedDocuments
from .readers.files import Location

FORMAT = 1
INDEX, LENGTHS = "index.json", "lengths.npy"
OPEN_READERS = 256
_HEADER = struct.Struct("<I")
_WRITER_OPTIONS = "group_size:1"  # each record is compressed and read by itself
_READER_OPTIONS = "readahead_buffer_size:0"
DType = Literal["float32", "float16"]


# ------------------------------------------------------------------ one record


def pack_record(document: Document, dtype: DType = "float32", keys: Sequence[str | None] = ()) -> bytes:
    """A document whose media are latents, as bytes: the length of a JSON header, the header, then the numbers.

    keys: content hash of each segment's medium, None for text. UserError for latents that are not finite.
    """
    segments: list[dict[str, Any]] = []
    numbers: list[np.ndarray] = []
    for segment, key in zip(document.segments, keys or [None] * len(document.segments), strict=True):
        flags: dict[str, Any] = {"condition": True} if segment.condition else {}
        if segment.loss == segment.condition:
            flags["loss"] = segment.loss
        if isinstance(segment, Text):
            segments.append({"text": segment.text} | flags)
            continue
        latents = segment.content
        entry = {segment.modality: list(latents.mean.shape), "posterior": latents.posterior}
        arrays = [latents.mean, latents.std]
        if latents.features is not None:
            entry["features"] = latents.features.shape[1]
            arrays.append(latents.features)
        if key is not None:
            entry["key"] = key
        segments.append(entry | flags)
        numbers += [_as_numbers(array, dtype) for array in arrays]
    header = json.dumps({"segments": segments}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return b"".join((_HEADER.pack(len(header)), header, *(array.tobytes() for array in numbers)))


def unpack_record(record: bytes, dtype: DType = "float32") -> Document:
    """The document in a record of `pack_record`, with latents in fp32."""
    (length,) = _HEADER.unpack_from(record)
    start = _HEADER.size + length
    numbers = np.frombuffer(record, np.dtype(dtype).newbyteorder("<"), offset=start).astype(np.float32)
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        size = int(np.prod(shape))
        found = torch.from_numpy(numbers[place : place + size]).reshape(shape)
        place += size
        return found

    segments: list[Segment] = []
    for entry in json.loads(record[_HEADER.size : start])["segments"]:
        condition = entry.get("condition", False)
        flags = {"condition": condition, "loss": entry.get("loss", not condition)}
        if "text" in entry:
            segments.append(Text(entry["text"], **flags))
            continue
        name = next(iter(entry))
        num, dim = entry[name]
        mean = take(num, dim)
        std = take(num, dim) if entry["posterior"] == "learned" else take()
        features = take(num, entry["features"]) if "features" in entry else None
        latents = Latents(mean, std, entry["posterior"], features)
        segments.append(modality(name).segment(latents, **flags))
    return Document(tuple(segments))


def most_positions(document: Document) -> int:
    """An upper bound of the positions of a document, for byte-level text tokenizers: one token per byte."""
    return 1 + sum(len(s.text.encode()) if isinstance(s, Text) else len(s.content) + 2 for s in document.segments)


def _as_numbers(values: Tensor, dtype: DType) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = values.detach().float().cpu().numpy().astype(np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(array).all():
        raise UserError(f"latents are not finite numbers in {dtype}")
    return array


# ------------------------------------------------------------------ files


class TokenizerRecord(BaseModel):
    """The tokenizer that made the latents of a modality; a model that is trained on them must have the same one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    latent_dim: int
    posterior: str


class ShardIndex(BaseModel):
    """index.json: what the shards hold, and the files with their numbers of documents, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT
    num_documents: int
    num_segments: dict[str, int]  # by modality, text too
    num_latents: dict[str, int]  # by modality
    num_skipped: int = 0
    longest: int  # the largest upper bound of the positions of a document
    dtype: DType
    tokenizers: dict[str, TokenizerRecord]
    plan: dict[str, Any]  # what they were made from: `encoding.plan.make_plan`
    parts: list[tuple[str, int]]


def array_record() -> Any:
    """The module of the ArrayRecord library. UserError if it is not installed."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise UserError("shards need array_record: pip install array_record") from None
    return array_record_module


def write_records(path: Location, records: Iterable[bytes]) -> None:
    """Write one ArrayRecord file atomically. OSError, which names it, if it cannot be written."""
    if path.scheme == "file":
        with replacing(path.path) as temporary:
            _write_local(temporary, records)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "part"
        _write_local(local, records)
        path.system.put_file(str(local), path.path)


def _write_local(path: Path, records: Iterable[bytes]) -> None:
    writer = array_record().ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


def write_file(path: Location, text: str) -> None:
    """Write a UTF-8 file; atomically on this machine."""
    if path.scheme == "file":
        write_text(path.path, text)
    else:
        path.system.pipe_file(path.path, text.encode("utf-8"))


def write_index(folder: Location, index: ShardIndex, lengths: np.ndarray) -> None:
    """Write lengths (num_documents,) int32, then index.json, whose presence means that the shards are complete."""
    if folder.scheme == "file":
        with replacing(inside(folder, LENGTHS).path) as temporary, open(temporary, "wb") as file:
            np.save(file, lengths)
    else:
        with folder.system.open(inside(folder, LENGTHS).path, "wb") as file:
            np.save(file, lengths)
    write_file(inside(folder, INDEX), json.dumps(index.model_dump(mode="json"), indent=1) + "\n")


def read_index(folder: Location) -> ShardIndex:
    """The index of a folder of shards. UserError if the shards are not finished or of another format."""
    path = inside(folder, INDEX)
    if not folder.system.exists(path.path):
        raise UserError(f"{folder}: no finished shards, it has no {INDEX}; `latentlm encode` makes them")
    try:
        return ShardIndex.model_validate(json.loads(path.read()))
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, ShardIndex)}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def inside(folder: Location, name: str) -> Location:
    return folder.at(f"{folder.path.rstrip('/')}/{name}")


# ------------------------------------------------------------------ reading


class ShardDocuments(PlacedDocuments):
    """The documents of a folder of shards, each read from disk on demand, from any thread."""

    def __init__(self, path: str):
        """Reads only index.json. UserError as `read_index`, and if array_record is not installed."""
        array_record()
        self.path = path
        self.folder = Location.of(path)
        self.index = read_index(self.folder)
        self._stamp = hashlib.sha256(inside(self.folder, INDEX).read()).hexdigest()[:16]
        self._ends = list(accumulate(count for _, count in self.index.parts))
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.index.num_documents

    def __getitem__(self, index: int) -> Document:
        """Document `index`. UserError, which names the file, if that is missing or broken."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        within = index - (self._ends[part - 1] if part else 0)
        with self._lock:
            (record,) = self._reader(part).read(within, within + 1)
        return unpack_record(record, self.index.dtype)

    def place(self, index: int) -> str:
        return f"{self.path}: document {index}"

    def most_positions(self) -> np.ndarray:
        """(num_documents,) int32, mapped from a file on this machine."""
        path = _local(inside(self.folder, LENGTHS), self._stamp)
        return np.load(path, mmap_mode="r")

    def __reduce__(self):
        return ShardDocuments, (self.path,)

    def _reader(self, part: int) -> Any:
        if part in self._readers:
            self._readers.move_to_end(part)
            return self._readers[part]
        name, count = self.index.parts[part]
        path = inside(self.folder, name)
        if not path.system.exists(path.path):
            raise UserError(f"{path}: no such file, and {INDEX} names it")
        reader = array_record().ArrayRecordReader(_local(path, self._stamp), _READER_OPTIONS)
        if not reader.ok() or reader.num_records() != count:
            raise UserError(f"{path}: {reader.num_records()} documents can be read, {INDEX} says {count}")
        self._readers[part] = reader
        while len(self._readers) > OPEN_READERS:
            self._readers.popitem(last=False)[1].close()
        return reader


def check_tokenizers(shards: ShardDocuments, tokenizers: dict[str, Any]) -> None:
    """Raise UserError if latents or features of these shards were made by other tokenizers than `tokenizers`."""
    for name in shards.index.num_latents:
        second = modality(name).second
        for reader in (name, second) if second else (name,):
            made_by = shards.index.tokenizers.get(reader)
            if made_by is None:  # no features; documents that need them are refused when they are resolved
                continue
            if reader not in tokenizers:
                raise UserError(f"{shards.path}: holds latents of {name}, but the model has no {reader} tokenizer")
            if (ours := tokenizers[reader].fingerprint()) != made_by.fingerprint:
                raise UserError(
                    f"{shards.path}: latents of another {reader} tokenizer "
                    f"(fingerprint {made_by.fingerprint}, the model's is {ours})"
                )


def _local(path: Location, stamp: str) -> str:
    """`path` if it is on this machine, else the name of a copy, made once per `stamp` of the shards."""
    if path.scheme == "file":
        return path.path
    copy = default_cache_dir() / "shards" / stamp / path.path.rpartition("/")[2]
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary, path.open_binary() as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target)
    return str(copy)
