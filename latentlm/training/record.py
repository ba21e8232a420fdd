"""`trainer.json`: what a checkpoint says of its run beside the tensors, and whether another run may go on from it.

Place in the flow: made and read by the trainer; `checkpoint.py` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .state import TrainingState, Window

FORMAT_VERSION = 1
"""Of the record; one without a version, as the first were written, is read as this."""

NUM_NAMED = 3
MAX_CHARACTERS = 120


@dataclass(frozen=True)
class Record:
    """identity: what a resumed run must agree on; loader: data positions; random: by rank; metadata: for people."""

    identity: dict[str, Any]
    state: TrainingState
    ema_updates: int
    loader: dict[str, Any]
    random: list[dict[str, Any]]
    metadata: dict[str, Any]

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"format_version": FORMAT_VERSION} | asdict(self)

    @classmethod
    def parse(cls, path: Path, fields: Mapping[str, Any]) -> Record:
        """What `dump` gave, of the checkpoint `path`. ValueError, one line, where another release wrote it."""
        fields = dict(fields)
        version = fields.pop("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: format_version is {version!r}, this release reads {FORMAT_VERSION}")
        try:
            state = dict(fields.pop("state"))
            window = Window(**state.pop("window"))
            return cls(**fields, state=TrainingState(**state, window=window))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: trainer.json was written by another release ({error})") from None

    def check(self, path: Path, identity: Mapping[str, Any]) -> None:
        """ValueError, one line, that names the first keys in which the run of checkpoint `path` was another."""
        found = differences(self.identity, identity)
        if found:
            named = [f"{key} = {_short(then)}, this run has {_short(now)}" for key, then, now in found[:NUM_NAMED]]
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
