"""What every configuration has in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1
"""Version of the checkpoint directory's layout; a directory of another version is refused."""


class RecipeError(ValueError):
    """A recipe that cannot be used. The message is one line and names the file and the key."""


class Config(BaseModel):
    """Immutable; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `word`: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else (f" (known: {', '.join(known)})" if known else "")
