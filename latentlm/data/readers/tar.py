"""WebDataset tars as rows: the members that share a key (the name before the first dot) make a row.

Place in the flow: 2, a reader. The suffix decides the column: `cat.jpg` and `cat.txt` are picture and text of one row.
Opening a tar reads its headers once and keeps the offset of each member.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import IO

import numpy as np

from ...config.base import did_you_mean
from ...config.modalities import modalities
from ...errors import UserError
from .files import Location, PerThread, Strings
from .rows import Rows

SUFFIXES = {"text": ("txt", "cls", "json")} | {
    each.name: tuple(suffix.removeprefix(".") for suffix in each.suffixes) for each in modalities()
}
"""Column -> the suffixes of its members; if a row has several, the first in this order counts."""
JSON_KEYS = ("text", "caption", "label")
"""Keys of the text in a `.json` member, the first that is there; `columns` can name another."""
OPEN_FILES = 16


@dataclass
class _Tar:
    """The members of one tar: row i has the members starts[i] to starts[i + 1] of offsets, sizes and suffixes."""

    keys: Strings
    suffixes: Strings
    offsets: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray


class TarRows(Rows):
    """The rows of one or more tars, one after the other.

    columns: column -> its suffix ("png"), or for text "json.KEY"; by default those of SUFFIXES.
    """

    def __init__(self, files: Sequence[Location], columns: Mapping[str, str]):
        """Reads the headers of all members. UserError, which names the file, for one that is not a tar."""
        self.files = list(files)
        self.columns = dict(columns)
        self._tars = [_index(file) for file in self.files]
        self._ends = list(accumulate(len(tar.keys) for tar in self._tars))
        self._open = PerThread(partial(_Handles, self.files))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def place(self, index: int) -> str:
        number, row = self._find(index)
        return f"{self.files[number]}: {self._tars[number].keys[row]}"

    def require(self, column: str) -> None:
        wanted = self._suffixes(column)
        present = set(self._members(0)) if len(self) else set()
        if not present & set(wanted):
            known = ", ".join(sorted(present)) or "no members"
            hint = did_you_mean(wanted[0], present) if column in self.columns else f" (its first row has {known})"
            raise UserError(f"{self.files[0]}: no {' or '.join('.' + suffix for suffix in wanted)} for {column}{hint}")

    def read(self, index: int, column: str) -> bytes | str:
        members = self._members(index)
        suffix = next((suffix for suffix in self._suffixes(column) if suffix in members), None)
        if suffix is None:
            raise UserError(f"no such member (the row has .{', .'.join(members)})")
        number, _ = self._find(index)
        offset, size = members[suffix]
        data = self._open().read(number, offset, size)
        if column == "text" and suffix == "json":
            return self._from_json(data)
        return data.rstrip(b"\r\n") if column == "text" else data

    def _suffixes(self, column: str) -> tuple[str, ...]:
        if column not in self.columns:
            return SUFFIXES[column]
        named = self.columns[column].lstrip(".")
        return ("json",) if named.startswith("json.") else (named,)

    def _members(self, index: int) -> dict[str, tuple[int, int]]:
        """Suffix -> (offset, size) in row `index`."""
        number, row = self._find(index)
        tar = self._tars[number]
        places = range(tar.starts[row], tar.starts[row + 1])
        return {tar.suffixes[i]: (int(tar.offsets[i]), int(tar.sizes[i])) for i in places}

    def _from_json(self, data: bytes) -> str:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise UserError(f"not JSON ({error})") from None
        if isinstance(value, dict):
            named = self.columns.get("text", "").lstrip(".").partition(".")[2]
            keys = (named,) if named else JSON_KEYS
            key = next((key for key in keys if key in value), None)
            if key is None:
                raise UserError(f"the object has no key {' or '.join(map(repr, keys))}")
            value = value[key]
        if not isinstance(value, str):
            raise UserError(f"the JSON holds {type(value).__name__}, expected text")
        return value


class _Handles:
    """The open tars of one thread."""

    def __init__(self, files: Sequence[Location]):
        self.files = files
        self._open: dict[int, IO[bytes]] = {}

    def read(self, number: int, offset: int, size: int) -> bytes:
        if number not in self._open:
            if len(self._open) == OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = self.files[number].open_binary()
        handle = self._open[number]
        handle.seek(offset)
        data = handle.read(size)
        if len(data) < size:
            raise UserError(f"cut off: {len(data)} of {size} bytes are there")
        return data


def _index(file: Location) -> _Tar:
    offsets, sizes, starts = array("q"), array("q"), array("q")
    keys, suffixes = [], []
    seen: set[str] = set()
    for key, suffix, offset, size in _members(file):
        if not keys or key != keys[-1]:
            if key in seen:
                raise UserError(f"{file}: {key}: its members are not consecutive")
            seen.add(key)
            keys.append(key)
            starts.append(len(offsets))
        offsets.append(offset)
        sizes.append(size)
        suffixes.append(suffix)
    starts.append(len(offsets))
    arrays = (np.frombuffer(numbers, np.int64) for numbers in (offsets, sizes, starts))
    if not keys:
        raise UserError(f"{file}: the tar holds no files")
    return _Tar(Strings(keys), Strings(suffixes), *arrays)


def _members(file: Location) -> Iterator[tuple[str, str, int, int]]:
    """(key, suffix, offset, size) of every file in a tar."""
    with file.open_binary() as handle:
        try:
            with tarfile.open(fileobj=handle, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # or it would keep them all
                    folder, name = posixpath.split(member.name)
                    stem, _, suffix = name.partition(".")
                    if member.isfile() and stem:
                        yield posixpath.join(folder, stem), suffix.lower(), member.offset_data, member.size
        except tarfile.TarError as error:
            raise UserError(f"{file}: not a readable tar, or a compressed one ({error})") from None
