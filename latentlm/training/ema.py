"""Exponential moving average of the weights, kept in fp32 beside the model.

Place in the flow: 5, updated by the trainer after each optimiser step, saved with it, swapped in for sampling.
The decay is warmed up as min(decay, (1 + k) / (10 + k)) over steps k: with a constant 0.9999 the average would still be
mostly the initialisation after ten thousand steps. The update is one fused lerp, which works on sharded (FSDP2) weights
too. An update takes a few percent of a small model's step, and weights of neighbouring steps hardly differ: after the
first EVERY_STEP steps, only every PERIOD-th step updates the average, with the decay of PERIOD steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EVERY_STEP = 16
"""The first so many steps update the average one by one."""
PERIOD = 4
"""After that, one step in so many updates it."""


def clean_name(name: str) -> str:
    """A parameter's name without the prefix of torch.compile."""
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
        """Call after each step: at the end of a period, average ← d·average + (1 - d)·weights with d = decay^period."""
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
        """Context manager: swaps the averaged weights in, and restores the originals on exit, bit for bit."""
        weights = [value for value in module.parameters() if value.requires_grad]
        backup = [value.detach().clone() for value in weights]
        torch._foreach_copy_(weights, self.average)
        try:
            yield module
        finally:
            torch._foreach_copy_(weights, backup)
