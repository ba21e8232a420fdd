"""Where a run is, and the losses since its last log line.

Place in the flow: kept by `trainer.py`, saved with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Window:
    """Sums since the last log line: a logged loss is the mean over all targets of these steps."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    num_steps: int = 0

    def add(self, sums: Mapping[str, float], counts: Mapping[str, float], norm: float, tokens: float) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + count_of(name, counts)
        self.gradient_norm += norm
        self.tokens += tokens
        self.num_steps += 1

    def losses(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in sorted(self.sums.items()) if self.counts[name]}


@dataclass
class TrainingState:
    """Where the run is. `seconds` of wall clock over all its sessions, as rank 0 counts them; `tokens` seen."""

    step: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    window: Window = field(default_factory=Window)


@dataclass(frozen=True)
class TrainingResult:
    """How `fit` ended: `finished` is False where a signal stopped it (it saved and can be resumed)."""

    step: int
    seconds: float
    finished: bool
    losses: dict[str, float]


def log_record(
    state: TrainingState, window: Window, weights: Mapping[str, float], learning_rate: float, unit: str
) -> dict[str, Any]:
    """A line of the log: where the run is, and what `window` tells; `weights` by loss name, 1 where there is none;
    `unit`: what was counted, tokens or examples."""
    losses = window.losses()
    return {
        "step": state.step,
        "loss": sum(weights.get(name, 1.0) * value for name, value in losses.items()),
        "losses": losses,
        "learning_rate": learning_rate,
        "gradient_norm": window.gradient_norm / window.num_steps,
        unit: int(state.tokens),
        f"{unit}_per_second": round(window.tokens / max(window.seconds, 1e-9), 1),
        "seconds": round(state.seconds, 3),
    }


def count_of(name: str, counts: Mapping[str, float]) -> float:
    """The number of targets that divides loss `name`: its own, or the examples."""
    if name in counts:
        return counts[name]
    if "examples" in counts:
        return counts["examples"]
    raise ValueError(f"loss {name!r} has no target count; the batch counts {', '.join(sorted(counts))}")
