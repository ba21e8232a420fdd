"""The state of a run besides its tensors, and whether a run may resume from it: `trainer.json` of a checkpoint.

Place in the flow: 5, made and read by the trainer; `checkpoint.py` keeps it beside the tensors.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.renamed import with_current_names
from ..errors import UserError

FORMAT_VERSION = 1
"""Version of trainer.json; a file without a version, as the first ones, is read as this version."""

FINGERPRINT_OPTIONAL = ("data.sources",)
"""Keys of the identity that checkpoints of older releases lack, and that are then not compared."""

NUM_NAMED = 3
"""Most differences that a message names."""
MAX_CHARACTERS = 120
"""Most characters of a value that a message shows."""


@dataclass
class LogWindow:
    """Sums since the last log record: a logged loss is the mean over all targets of these steps.

    norms, norm_counts  summed gradient norms of further phases, by phase, and the number of steps of each
    """

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    num_steps: int = 0
    norms: dict[str, float] = field(default_factory=dict)
    norm_counts: dict[str, int] = field(default_factory=dict)

    def add(self, sums: Mapping[str, float], counts: Mapping[str, float], tokens: float) -> None:
        """Add the sums, target counts and tokens of a step."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + count_of(name, counts)
        self.tokens += tokens
        self.num_steps += 1

    def add_norm(self, phase: str, norm: float) -> None:
        """Add the gradient norm of a further phase in a step."""
        self.norms[phase] = self.norms.get(phase, 0.0) + norm
        self.norm_counts[phase] = self.norm_counts.get(phase, 0) + 1

    def losses(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in sorted(self.sums.items()) if self.counts[name]}

    def dump(self) -> dict[str, Any]:
        """The sums as JSON; keys of further phases only if there are any."""
        further = () if self.norms else ("norms", "norm_counts")
        return {name: value for name, value in asdict(self).items() if name not in further}


@dataclass
class RunProgress:
    """Progress of a run: steps, seconds of wall clock over all its sessions (rank 0's clock), tokens or examples.

    threads: CPU threads per process, with which the last checkpoint was reached; sums depend on them in the last digit.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    threads: int | None = None
    window: LogWindow = field(default_factory=LogWindow)


@dataclass(frozen=True)
class TrainingResult:
    """The result of `fit`. num_trained: steps of this session. finished: False if a signal stopped it; it then saved a
    checkpoint and can be resumed."""

    step: int
    num_trained: int
    seconds: float
    finished: bool
    losses: dict[str, float]


@dataclass(frozen=True)
class TrainerState:
    """The content of trainer.json.

    identity  values that a resumed run must have too
    loader    positions in the data
    random    states of the random generators, by rank
    metadata  values for people
    """

    identity: dict[str, Any]
    progress: RunProgress
    ema_updates: int
    loader: dict[str, Any]
    random: list[dict[str, Any]]
    metadata: dict[str, Any]

    def dump(self) -> dict[str, Any]:
        """This state as JSON values."""
        fields = {"format_version": FORMAT_VERSION} | asdict(self)
        fields["state"] = fields.pop("progress") | {"window": self.progress.window.dump()}
        return fields

    @classmethod
    def parse(cls, path: Path, fields: Mapping[str, Any]) -> TrainerState:
        """The inverse of `dump`, for the checkpoint `path`. Raises UserError if another release wrote it."""
        fields = dict(fields)
        version = fields.pop("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format_version is {version!r}, this release reads {FORMAT_VERSION}")
        try:
            progress = dict(fields.pop("state"))
            window = LogWindow(**progress.pop("window"))
            fields["identity"] = with_current_names(fields["identity"])
            return cls(**fields, progress=RunProgress(**progress, window=window))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: trainer.json was written by another release ({error})") from None

    def check(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Raise UserError, naming the first keys that differ, unless a run of `identity` may resume from `path`."""
        then = {key: identity[key] for key in FINGERPRINT_OPTIONAL if key in identity} | dict(self.identity)
        found = differences(then, identity)
        if found:
            named = [f"{key} = {_short(then)}, this run has {_short(now)}" for key, then, now in found[:NUM_NAMED]]
            more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
            raise UserError(f"{path}: was made with {'; '.join(named)}{more}; cannot resume")


def differences(then: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, value then, value now) for all values that differ; a missing key counts as None."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = sorted(then.keys() | now.keys())
        parts = [differences(then.get(name), now.get(name), f"{key}.{name}" if key else name) for name in names]
        return [difference for part in parts for difference in part]
    return [] if then == now else [(key, then, now)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


# ------------------------------------------------------------------ random state


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, as JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    state = {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
        "torch": _encode(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what `random_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(_decode(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def count_of(name: str, counts: Mapping[str, float]) -> float:
    """The number of targets that loss `name` is divided by: its own count, or else the number of examples."""
    if name in counts:
        return counts[name]
    if "examples" in counts:
        return counts["examples"]
    raise UserError(f"loss {name!r} has no target count; the batch counts {', '.join(sorted(counts))}")
