"""The base class of every configuration."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from ..errors import UserError
from .renamed import RENAMED, current_value

FORMAT_VERSION = 1
"""Version of the layout of a model's folder; other versions are refused."""


Count = Annotated[int, Field(gt=0)]
"""A number that is at least 1: widths, layers, rows."""


class RecipeError(UserError):
    """A recipe that cannot be used. The message is one line and names the file and the key."""


class Config(BaseModel):
    """Immutable configuration: rejects unknown keys and numbers that are not finite, and reads old names of keys.

    With the validation context {"renamed": set}, the (old, new) names of renamed keys are added to that set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _with_current_names(cls, fields: Any, info: ValidationInfo) -> Any:
        if not isinstance(fields, dict):
            return fields
        old = [key for key in fields if RENAMED.get(key) in cls.model_fields and key not in cls.model_fields]
        for key in old:
            if RENAMED[key] in fields:
                raise UserError(f"{key} is the old name of {RENAMED[key]}: give one of them")
            fields = {k: v for k, v in fields.items() if k != key} | {RENAMED[key]: current_value(key, fields[key])}
            if info.context:
                info.context["renamed"].add((key, RENAMED[key]))
        return {key: current_value(key, value) for key, value in fields.items()}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown `word`: the most similar of `known`, or else all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else (f" (known: {', '.join(known)})" if known else "")


def require_multiple(name: str, value: int, of: str, divisor: int) -> None:
    """Raise UserError, naming both, unless `value` is a multiple of `divisor`."""
    if value % divisor:
        raise UserError(f"{name} {value} is not a multiple of {of} {divisor}")
