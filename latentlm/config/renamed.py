"""Keys of earlier releases under their present names, so that old recipes, runs and checkpoints still load.

Place in the flow: used by every configuration (`base.py`) and by the checkpoints of a run (`training/state.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {"accumulation": "global_micro_batches", "warped_copies": "augmented_copies", "answer": "stop_at"}
"""Old key -> new key."""

VALUES = {"answer": {"span": "eod", "document": "eos"}, "prompt": {"vibevoice": "script"}}
"""Key (the old one where it was renamed) -> {old value: new value}."""


def current_name(dotted: str) -> str:
    """The dotted key "training.accumulation" with its last part under its present name."""
    *parents, last = dotted.split(".")
    return ".".join([*parents, RENAMED.get(last, last)])


def current_value(key: str, value: Any) -> Any:
    """The present name of `value` of `key`."""
    return VALUES[key].get(value, value) if key in VALUES and isinstance(value, str) else value


def with_current_names(fields: Any) -> Any:
    """A JSON value with every old key in it, also a dotted one, under its present name."""
    if isinstance(fields, Mapping):
        return {
            current_name(key): with_current_names(current_value(key.split(".")[-1], value))
            for key, value in fields.items()
        }
    return [with_current_names(value) for value in fields] if isinstance(fields, list | tuple) else fields
