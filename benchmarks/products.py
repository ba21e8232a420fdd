"""The matrix products of a position of generation, by themselves: how much of its time nothing else could save.

The floor asks for the rate of a large product. What the engine multiplies is another thing: a few rows by each of many
matrices, one after the other, which together are larger than a core's own cache. So the products are also timed as they
occur: the same modules with the same weights in the same order, on inputs of the same shapes, and nothing between.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from figures import seconds_of
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from latentlm.generation.packed import PackedLinear


class Products:
    """The products within `position()`, recorded once and repeated at will."""

    def __init__(self, position: Callable[[], object]):
        self.calls: list[tuple[nn.Module, Tensor]] = []
        hook = register_module_forward_pre_hook(self._record)
        try:
            position()
        finally:
            hook.remove()

    def _record(self, module: nn.Module, arguments: tuple) -> None:
        if isinstance(module, nn.Linear | PackedLinear):
            self.calls.append((module, torch.randn_like(arguments[0])))

    @torch.inference_mode()
    def seconds(self) -> float:
        """All of them, once."""
        return seconds_of(lambda: [module(x) for module, x in self.calls])
