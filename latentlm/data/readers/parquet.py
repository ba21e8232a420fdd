"""Parquet files as rows: media as bytes (raw, or `{bytes, path}` structs) or paths of files beside them.

Place in the flow: 2, a reader. Files are read by row group, so random access is fast if the groups are small. Each
thread has its own open files and keeps the row groups that it read last, up to KEPT_BYTES.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from ...config.base import did_you_mean
from ...errors import UserError
from .files import Location, PerThread
from .rows import Rows, named_columns

KEPT_BYTES = 64 * 2**20
"""Size of the row groups that a thread keeps; the last one is kept whatever its size."""
OPEN_FILES = 16


class ParquetRows(Rows):
    """The rows of one or more Parquet files of one schema, one file after the other."""

    def __init__(self, files: Sequence[Location], columns: Mapping[str, str]):
        """Reads only the footers. UserError, which names the file, for one that is not Parquet."""
        self.files = list(files)
        self.columns = named_columns(columns)
        self._schemas: dict[tuple[str, ...], Location] = {}  # names of the columns -> the first file that has these
        counts: list[list[int]] = []
        for file in self.files:
            with file.open_binary() as handle:
                opened = _open(file, handle)
                self._schemas.setdefault(tuple(opened.schema_arrow.names), file)
                metadata = opened.metadata
                counts.append([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        self._groups = [(number, group) for number, groups in enumerate(counts) for group in range(len(groups))]
        self._ends = list(accumulate(rows for groups in counts for rows in groups))
        self._file_starts = [0, *accumulate(sum(groups) for groups in counts)]
        self._cache = PerThread(partial(_Groups, self.files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> str:
        file = bisect_right(self._file_starts, index) - 1
        return f"{self.files[file]}: row {index - self._file_starts[file]}"

    def require(self, column: str) -> None:
        name = self.columns[column]
        for names, file in self._schemas.items():
            if name not in names:
                raise UserError(f"{file}: no column {name!r} for {column}{did_you_mean(name, names)}")

    def read(self, index: int, column: str) -> bytes | str | Location:
        group = bisect_right(self._ends, index)
        number, within = self._groups[group]
        row = index - (self._ends[group - 1] if group else 0)
        file = self.files[number]
        value = self._cache()(number, within, self.columns[column])[row].as_py()
        if isinstance(value, dict):  # a struct of bytes and path, as Hugging Face datasets write media
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise UserError("missing (null)")
        if column != "text" and isinstance(value, str):
            return file.beside(value)
        if not isinstance(value, bytes | str):
            value = str(value)  # a number or a date as text
        return value


class _Groups:
    """The open files of one thread, and the columns of the row groups that it read last."""

    def __init__(self, files: Sequence[Location]):
        self.files = files
        self._open: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        self._kept: OrderedDict[tuple[int, int, str], Any] = OrderedDict()

    def __call__(self, number: int, group: int, column: str) -> Any:
        """The values of a column in one row group: an Arrow array."""
        key = (number, group, column)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        values = self._read(number, group, column)
        self._kept[key] = values
        while len(self._kept) > 1 and sum(array.nbytes for array in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return values

    def _read(self, number: int, group: int, column: str) -> Any:
        import pyarrow

        if number not in self._open:
            handle = self.files[number].open_binary()
            self._open[number] = (_open(self.files[number], handle), handle)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1][1].close()
        try:
            table = self._open[number][0].read_row_group(group, columns=[column], use_threads=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"row group {group} cannot be read ({' '.join(str(error).split())[:200]})") from None
        column_values = table.column(table.column_names[0])
        return column_values.chunk(0) if column_values.num_chunks == 1 else column_values


def _open(file: Location, handle: Any) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{file}: Parquet needs pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(handle)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from None
