"""Exponential moving average of the weights, kept in fp32 beside the model.

Place in the flow: updated by the trainer after each optimiser step, saved with it, swapped in for sampling.
The decay is warmed up as min(decay, (1 + k) / (10 + k)) over steps k: a constant 0.9999 would still be mostly the
initialisation after ten thousand steps. One fused lerp over clones, which works on sharded (FSDP2) weights, too.
Weights of neighbouring steps hardly differ, and a pass over all of them is a few percent of a small model's step: once
the run is under way, every fourth step's weights enter, by the decay of four.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EVERY_STEP = 16
"""The weights of so many first steps enter the average one by one."""
PERIOD = 4
"""Afterwards those of every so many."""


def clean_name(name: str) -> str:
    """A parameter's name without the prefix that torch.compile puts into it."""
    return name.replace("_orig_mod.", "")


class EMA:
    """Averages of the trainable parameters of `module`, by clean name."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        named = [(clean_name(name), value) for name, value in module.named_parameters() if value.requires_grad]
        self.names = [name for name, _ in named]
        self.average: list[Tensor] = [value.detach().float().clone() for _, value in named]

    def decay_at(self, num_updates: int) -> float:
        return min(self.decay, (1 + num_updates) / (10 + num_updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """After a step: average ← d·average + (1 - d)·weights, d = decay^period, when the period is over."""
        k = self.num_updates
        self.num_updates += 1
        period = 1 if k < EVERY_STEP else PERIOD
        if self.num_updates % period:
            return
        weights = [value.detach().float() for value in module.parameters() if value.requires_grad]
        torch._foreach_lerp_(self.average, weights, 1 - self.decay_at(k) ** period)

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @contextmanager
    @torch.no_grad()
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """Within, `module` has the averaged weights; after, its own again, to the bit."""
        weights = [value for value in module.parameters() if value.requires_grad]
        backup = [value.detach().clone() for value in weights]
        torch._foreach_copy_(weights, self.average)
        try:
            yield module
        finally:
            torch._foreach_copy_(weights, backup)
