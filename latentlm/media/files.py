"""Helpers to read and write media files: complete files or none, and error messages of one line.

Place in the flow: below `picture.py` and `sound.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..errors import UserError
from ..weights import replacing

BROKEN = (OSError, UserError, MemoryError)
"""Raised for broken files, beside each library's own errors; a corrupt header may ask for all memory."""


def existing(path: str | Path) -> Path:
    """`path` as a Path. Raises UserError, which names it, if there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def target(path: str | Path) -> AbstractContextManager[Path]:
    """Context manager: yields a temporary file that replaces `path` on exit, or `path` itself for links and devices."""
    path = Path(path)
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    return nullcontext(path) if in_place else replacing(path)


def one_line(error: Exception) -> str:
    """The message of `error` in one line; errors of the operating system without their number and path."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
