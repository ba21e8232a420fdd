"""The matrix products of one position of generation, timed alone: the part of its time that cannot be saved elsewhere.

The floor assumes the rate of a large product. The engine multiplies a few rows by each of many matrices, one after the
other, which together are larger than a core's cache. So the products are also timed as they occur: the same operators
with the same weights in the same order, on inputs of the same shapes, without other operations in between.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from figures import seconds_of
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"aten::linear", "aten::mm", "aten::addmm", "mkl::_mkl_linear", "mkldnn::_linear_pointwise"}


class Products(TorchDispatchMode):
    """The matrix products of `position()`, recorded once, which `seconds` repeats."""

    def __init__(self, position: Callable[[], object]):
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []
        self.flops = 0
        with self:
            position()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.name().partition(".")[0] in PRODUCTS:
            self.calls.append((function, args, kwargs or {}))
            x = args[1] if "addmm" in function.name() else args[0]  # (..., K), multiplied into (..., N)
            self.flops += 2 * x.numel() * result.shape[-1]
        return result

    @torch.inference_mode()
    def seconds(self) -> float:
        """Seconds of all products, run once."""
        return seconds_of(lambda: [function(*args, **kwargs) for function, args, kwargs in self.calls])
