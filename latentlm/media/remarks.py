"""Notices about media: what was changed or lost while a picture or sound was read, limited in number.

Place in the flow: below `picture.py` and `sound.py`.
"""

from __future__ import annotations

from ..errors import notice

NUM_NAMED = 3
"""Media named per remark: the rest of thousands of files with the same problem is not listed."""

_named: dict[str, list[str]] = {}  # remark -> names of the media about which it was made


def remark(name: str, what: str) -> None:
    """Give the notice `name: what`: once per name, and for the first NUM_NAMED names alone, in each process."""
    names = _named.setdefault(what, [])
    if name in names or len(names) == NUM_NAMED:
        return
    names.append(name)
    notice(f"{name}: {what}{'; further files are not named' if len(names) == NUM_NAMED else ''}")
