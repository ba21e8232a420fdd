"""Exponential moving average of the weights, kept in fp32 beside the model.

Place in the flow: updated by the trainer after each optimiser step, saved with it, swapped in for sampling.
The decay is warmed up as min(decay, (1 + k) / (10 + k)) over updates k: a constant 0.9999 would still be mostly the
initialisation after ten thousand steps. One fused lerp over clones, which works on sharded (FSDP2) weights, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
        """average ← decay·average + (1 - decay)·weights."""
        weights = [value.detach().float() for value in module.parameters() if value.requires_grad]
        torch._foreach_lerp_(self.average, weights, 1 - self.decay_at(self.num_updates))
        self.num_updates += 1

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
