"""The registry of modalities: each is one file of `latentlm/modalities/`, imported when it is looked up.

Place in the flow: all packages look up here what differs between modalities (`types.Modality`). The files are above the
tokenizers and this package is below them, so they are found by name: a new file there is a new modality.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .base import did_you_mean

if TYPE_CHECKING:
    from ..types import Modality, Segment

FOLDER = Path(__file__).parents[1] / "modalities"


@cache
def modality_names() -> tuple[str, ...]:
    """The names of all continuous modalities, in alphabetical order; nothing is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)])))


@cache
def modality(name: str) -> Modality:
    """The record of a modality. Raises UserError for an unknown name, with the most similar known one."""
    if name not in modality_names():
        raise UserError(f"no modality {name!r}{did_you_mean(name, modality_names())}")
    return importlib.import_module(f"latentlm.modalities.{name}").MODALITY


def modalities() -> tuple[Modality, ...]:
    """All records, in the order of `modality_names`."""
    return tuple(modality(name) for name in modality_names())


def second_tokenizers() -> dict[str, str]:
    """Name of a second tokenizer -> the modality that it belongs to."""
    return {each.second: each.name for each in modalities() if each.second}


def tokenizer_names() -> tuple[str, ...]:
    """Names of the continuous tokenizers that a model may have: modalities, then second tokenizers."""
    return (*modality_names(), *second_tokenizers())


def tokenizer_kinds() -> Mapping[str, tuple[type, type]]:
    """The config class and Tokenizer class of each `kind` of a tokenizer's config.json."""
    return {kind: classes for each in modalities() for kind, classes in each.tokenizers.items()}


def modality_of(medium: Any) -> Modality | None:
    """The modality of an object that a user passes as a medium; None if it is no medium."""
    return next((each for each in modalities() if each.is_medium(medium)), None)


def modality_of_suffix(suffix: str) -> Modality | None:
    """The modality of files with `suffix` (lower case, with its dot); None if there is none."""
    return next((each for each in modalities() if suffix in each.suffixes), None)


def as_segment(medium: Any, **flags: bool) -> Segment | None:
    """`medium` as a segment of its modality; None if it is no medium."""
    found = modality_of(medium)
    return None if found is None else found.segment(medium, **flags)
