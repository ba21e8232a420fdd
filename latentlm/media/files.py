"""What reading and writing pictures and sound have in common: whole files or none, and errors of one line.

Place in the flow: below `picture.py` and `sound.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..errors import UserError
from ..weights import replacing

BROKEN = (OSError, UserError, MemoryError)
"""What broken files raise beside a library's own errors; a corrupt header may ask for more memory than there is."""


def existing(path: str | Path) -> Path:
    """`path` as a Path. UserError names it where it is no file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def target(path: str | Path) -> AbstractContextManager[Path]:
    """What to write instead of `path`: a temporary file that takes its place, or itself for a link or device."""
    path = Path(path)
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    return nullcontext(path) if in_place else replacing(path)


def one_line(error: Exception) -> str:
    """What an error says; of the operating system's the words alone."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
