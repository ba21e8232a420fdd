"""What a checkpoint's run must have in common with the one that goes on from it.

Place in the flow: beside `checkpoint.py`; the trainer asks before it takes anything from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NUM_NAMED = 3
MAX_CHARACTERS = 120


def check_identity(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError, one line, that names the first keys in which the run of checkpoint `path` was another."""
    found = differences(then, now)
    if found:
        named = [f"{key} = {_short(a)}, this run has {_short(b)}" for key, a, b in found[:NUM_NAMED]]
        more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
        raise ValueError(f"{path}: was made with {'; '.join(named)}{more}; cannot resume")


def differences(then: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, then, now) wherever the two differ; a key that is missing is None."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = sorted(then.keys() | now.keys())
        parts = [differences(then.get(name), now.get(name), f"{key}.{name}" if key else name) for name in names]
        return [difference for part in parts for difference in part]
    return [] if then == now else [(key, then, now)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
