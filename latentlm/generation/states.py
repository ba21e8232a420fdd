"""Hidden states of one step of the engine, found by task.

Place in the flow: 4, inside `engine.py`, between the transformer and the heads. Legend: `R` rows, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class States:
    """Hidden states (R, D) of one step, and in which row each task's condition and guidance branch lies."""

    hidden: Tensor
    place: dict[int, int]
    null_place: dict[int, int]

    def of(self, tasks: list[int]) -> Tensor:
        return take(self.hidden, [self.place[i] for i in tasks])

    def null_of(self, tasks: list[int]) -> Tensor:
        return take(self.hidden, [self.null_place[i] for i in tasks])


def take(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of x, without a copy where they lie side by side."""
    if rows and rows == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[torch.tensor(rows, dtype=torch.int64, device=x.device)]
