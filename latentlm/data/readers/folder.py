"""A folder of pictures or sounds as rows: the folder that a file lies in names its class, which is the text.

Place in the flow: 2, a reader. `photos/golden_retriever/7.jpg` is a row with image and text "golden retriever". Files
that lie in no class folder have no text.
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
    """The files of media below a folder, by name."""

    def __init__(self, root: Location, files: Sequence[Location]):
        """`files`: all that is below `root`; files of no modality are passed over."""
        self.root = root
        start = len(root.path.rstrip("/")) + 1
        self.names = Strings(file.path[start:] for file in files if _modality(file.path) is not None)
        if not len(self.names):
            raise UserError(f"{root}: no files of {', '.join(modality_names())} in this folder")

    def __len__(self) -> int:
        return len(self.names)

    def place(self, index: int) -> str:
        return str(self._file(index))

    def require(self, column: str) -> None:
        name = self.names[0]
        if column == "text" and not posixpath.dirname(name):
            raise UserError(f"{self.place(0)}: lies in no folder that would name its class")
        if column != "text" and _modality(name) != column:
            raise UserError(f"{self.place(0)}: not a file of {column}")

    def read(self, index: int, column: str) -> bytes | str:
        if column == "text":
            folder = posixpath.basename(posixpath.dirname(self.names[index]))
            if not folder:
                raise UserError("the file lies in no folder that would name its class")
            return folder.replace("_", " ")
        if _modality(self.names[index]) != column:
            raise UserError(f"not a file of {column}")
        return self._file(index).read()

    def _file(self, index: int) -> Location:
        return self.root.at(posixpath.join(self.root.path, self.names[index]))


def _modality(path: str) -> str | None:
    suffix = posixpath.splitext(path)[1].lower().removeprefix(".")
    return next((name for name in modality_names() if suffix in SUFFIXES[name]), None)
