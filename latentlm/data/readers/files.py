"""Files of a source, on this machine or behind any fsspec URL; shared by all readers.

Place in the flow: 2, below the readers. A path is a file, a folder, or a pattern (`data/part-*.tar`); a URL has a
scheme in front (`s3://bucket/data.parquet`, `memory://set`). A UserError names the path.
"""

from __future__ import annotations

import os
import posixpath
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ...errors import UserError

STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modify", "created")
"""Keys of fsspec's file information that change with the content, the most reliable first."""


class _Systems(threading.local):
    """One thread's file systems with options, by scheme and options. They live as long as the thread, because the file
    system of an archive closes its open files when it is deleted. A forked process makes its own."""

    def __init__(self):
        self.process = os.getpid()
        self.known: dict[tuple[str, str], Any] = {}

    def get(self, scheme: str, options: Mapping[str, Any]) -> Any:
        import fsspec

        if self.process != os.getpid():
            self.__init__()
        key = (scheme, repr(sorted(options.items())))
        if key not in self.known:
            self.known[key] = fsspec.filesystem(scheme, **options)
        return self.known[key]


_systems = _Systems()


@dataclass(frozen=True)
class Location:
    """A path in a file system of `scheme` "file", "memory", "s3" …

    options: (name, value) pairs from the URL, sorted by name: host, user, the archive that contains the path.
    """

    scheme: str
    path: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str) -> Location:
        """The location of a path or URL. UserError for an unknown scheme, a missing library or an unreachable host."""
        from fsspec.core import url_to_fs

        try:
            system, path = url_to_fs(name)
        except (ValueError, ImportError, OSError) as error:
            raise UserError(f"{name}: {' '.join(str(error).split())}") from None
        protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
        return cls(protocol, path, tuple(sorted(system.storage_options.items())))

    @property
    def system(self) -> Any:
        """The fsspec file system; one object per thread, scheme and options."""
        import fsspec

        if not self.options:
            return fsspec.filesystem(self.scheme)
        return _systems.get(self.scheme, dict(self.options))

    def __str__(self) -> str:
        return self.path if self.scheme == "file" else self.system.unstrip_protocol(self.path)

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.path)[1].lower()

    def at(self, path: str) -> Location:
        """Another path of the same file system."""
        return Location(self.scheme, path, self.options)

    def beside(self, name: str) -> Location:
        """The file `name`: relative to the folder of this file, absolute, or a URL."""
        if "://" in name:
            return Location.of(name)
        return self.at(posixpath.join(posixpath.dirname(self.path), name))

    def open_binary(self) -> IO[bytes]:
        """The file, opened for reading. UserError if it does not exist or cannot be opened."""
        try:
            return self.system.open(self.path, "rb")
        except FileNotFoundError:
            raise UserError(f"{self}: no such file") from None
        except OSError as error:
            raise UserError(f"{self}: {error.strerror or error}") from None

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """The bytes from `start` on. UserError as `open_binary`."""
        with self.open_binary() as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def size(self) -> int:
        return int(self.system.size(self.path))

    def stamp(self) -> str:
        """A string that changes with the file's content: its hash or time, as its file system tells; else empty."""
        info = self.system.info(self.path)
        return next((str(info[key]) for key in STAMPS if info.get(key) is not None), "")

    def is_folder(self) -> bool:
        return self.system.isdir(self.path)

    def files(self) -> Sequence[Location]:
        """The file itself, all files below a folder, or those that match a pattern, sorted by path.

        Files and folders whose name begins with a dot are left out. UserError if there are none.
        """
        if self.is_folder() and self.scheme == "file":
            start = len(self.path.rstrip("/")) + 1
            names = Strings(path[start:] for path in _walk(self.path))
            if not len(names):
                raise UserError(f"{self}: the folder is empty")
            return Files(self, names)
        if self.is_folder():
            found = [path for path in self.system.find(self.path) if not self._hidden(path)]
        elif any(sign in self.path for sign in "*?["):
            found = [path for path in self.system.glob(self.path) if not self.system.isdir(path)]
        else:
            found = [self.path] if self.system.exists(self.path) else []
        if not found:
            raise UserError(f"{self}: no such file" if not self.is_folder() else f"{self}: the folder is empty")
        return [self.at(path) for path in sorted(found)]

    def _hidden(self, path: str) -> bool:
        return any(part.startswith(".") for part in path.removeprefix(self.path).split("/"))


class Strings(Sequence[str]):
    """Many short strings in one block of bytes and an array of ends, a tenth of the memory of a list."""

    def __init__(self, strings: Iterable[str]):
        encoded = bytearray()
        ends = [0]
        for string in strings:
            encoded += string.encode("utf-8", "surrogateescape")
            ends.append(len(encoded))
        self._encoded, self._ends = bytes(encoded), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        return self._encoded[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")


class Files(Sequence[Location]):
    """Files in a folder, given by their names."""

    def __init__(self, folder: Location, names: Strings):
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Location:
        return self.folder.at(posixpath.join(self.folder.path, self.names[index]))


def _walk(folder: str) -> Iterator[str]:
    """All files below a folder of this machine, sorted by path, with one folder in memory at a time.

    Hidden files and folders that cannot be listed are left out. Links count as files, also links to folders, as in
    fsspec.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name[0] != "."]
    except OSError:
        return
    for name, is_folder in sorted((f"{name}/" if is_folder else name, is_folder) for name, is_folder in found):
        path = posixpath.join(folder, name)
        if is_folder:
            yield from _walk(path)
        else:
            yield path


class PerThread:
    """Calls `make()` once per thread, also in each new process, so that no two readers share open files."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._local = threading.local()

    def __call__(self) -> Any:
        if not hasattr(self._local, "value"):
            self._local.value = self._make()
        return self._local.value

    def __reduce__(self):
        return PerThread, (self._make,)
