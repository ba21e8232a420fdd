"""A folder of pictures or sounds as rows; the text of a file is the name of the folder that contains it.

Place in the flow: 2, a reader. `photos/golden_retriever/7.jpg` is a row with image and text "golden retriever". Files
directly in the folder have no text.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from ...config.modalities import modality_names
from ...errors import UserError
from .files import Location, Strings
from .rows import Rows
from .tar import SUFFIXES


class FolderRows(Rows):
    """The files of media below a folder, sorted by path."""

    def __init__(self, root: Location, files: Sequence[Location]):
        """files: all files below `root`; those of no modality are ignored."""
        self.root = root
        start = len(root.path.rstrip("/")) + 1
        self.names = Strings(file.path[start:] for file in files if _modality(file.path) is not None)
        if not len(self.names):
            names = ", ".join(modality_names())
            raise UserError(f"{root}: no files of {names} in this folder; text is read from .jsonl, .parquet and .tar")

    def __len__(self) -> int:
        return len(self.names)

    def place(self, index: int) -> str:
        return str(self._file(index))

    def require(self, column: str) -> None:
        try:
            self._check(0, column)
        except UserError as error:
            raise UserError(f"{self.place(0)}: {error}") from None

    def read(self, index: int, column: str) -> bytes | str:
        self._check(index, column)
        if column == "text":
            return posixpath.basename(posixpath.dirname(self.names[index])).replace("_", " ")
        return self._file(index).read()

    def file_name(self, index: int) -> str:
        return str(self._file(index))

    def _check(self, index: int, column: str) -> None:
        """Raise UserError where file `index` has no such column."""
        name = self.names[index]
        found = _modality(name)
        if column == "text" and not posixpath.dirname(name):
            raise UserError(
                f"has no text: the folder of a file names its class, as in cat/{posixpath.basename(name)}; "
                "other texts are given in a .jsonl manifest"
            )
        if column not in ("text", found):
            raise UserError(f"is {found}, the task needs {column}; a folder holds files of one modality")

    def _file(self, index: int) -> Location:
        return self.root.at(posixpath.join(self.root.path, self.names[index]))


def _modality(path: str) -> str | None:
    suffix = posixpath.splitext(path)[1].lower().removeprefix(".")
    return next((name for name in modality_names() if suffix in SUFFIXES[name]), None)
