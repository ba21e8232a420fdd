"""Files of a source, on this machine or behind any fsspec URL, and what its readers share.

Place in the flow: 2, below the readers. A path is a file, a folder, or a pattern (`data/part-*.tar`); a URL is that
with a scheme in front (`s3://bucket/data.parquet`, `memory://set`). What is wrong is a UserError that names the path.
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
"""Where the file systems of fsspec say that a file is another, the surest first."""


class _Systems(threading.local):
    """A thread's file systems with options, by scheme and options. They are kept as long as the thread, since that of
    an archive closes the files that are open in it when it goes; a forked process makes its own."""

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
    """A place in a file system: `scheme` "file", "memory", "s3" …, and the path there; options: as in its URL, (name,
    value) by name: host, user, the archive that it lies in."""

    scheme: str
    path: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str) -> Location:
        """Raises UserError for a scheme that fsspec does not know, whose library is missing, or whose host does not
        answer."""
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
        """What a file here calls `name`: relative to its folder, absolute, or a URL of its own."""
        if "://" in name:
            return Location.of(name)
        return self.at(posixpath.join(posixpath.dirname(self.path), name))

    def open_binary(self) -> IO[bytes]:
        """UserError where there is no such file or it cannot be opened."""
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
        """What changes with the file's content: its hash or its time, whichever its file system tells; else nothing."""
        info = self.system.info(self.path)
        return next((str(info[key]) for key in STAMPS if info.get(key) is not None), "")

    def is_folder(self) -> bool:
        return self.system.isdir(self.path)

    def files(self) -> Sequence[Location]:
        """The file itself, all files below a folder, or those that fit a pattern, by name.

        Hidden ones (a leading dot, in their own name or a folder's) are left out. UserError where there are none.
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
    """Many short strings in one block of bytes and an array of ends: a tenth of what a list of them takes."""

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
    """The files of these names in a folder."""

    def __init__(self, folder: Location, names: Strings):
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Location:
        return self.folder.at(posixpath.join(self.folder.path, self.names[index]))


def _walk(folder: str) -> Iterator[str]:
    """All files below a folder of this machine in the order of their paths, one folder in memory at a time.

    Hidden ones are left out, and so is what cannot be listed; links are files, links to folders too: as fsspec has it.
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
    """`make()` once in each thread, and anew in each process: open files are never shared between two readers."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._local = threading.local()

    def __call__(self) -> Any:
        if not hasattr(self._local, "value"):
            self._local.value = self._make()
        return self._local.value

    def __reduce__(self):
        return PerThread, (self._make,)
