"""What every configuration has in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
"""Version of the checkpoint directory's layout; a directory of another version is refused."""


Count = Annotated[int, Field(gt=0)]
"""How many of something there must be: widths, layers, rows."""


class RecipeError(ValueError):
    """A recipe that cannot be used. The message is one line and names the file and the key."""


class Config(BaseModel):
    """Immutable; a key that it does not have is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `word`: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else (f" (known: {', '.join(known)})" if known else "")
