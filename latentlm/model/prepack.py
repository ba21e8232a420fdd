"""Modules with their matrices laid out once for the number of rows that decoding multiplies them by.

Place in the flow: 4, between the model and the engine, between a head and its sampler. On CPU,
`torch.nn.functional.linear` rearranges the whole weight inside every product; with few rows that costs as much as
multiplying. Decoding uses the same weights with the same few rows again and again, so it rearranges them once, by the
operators that torch's own compiler uses for frozen weights: oneDNN's, in bf16 where the CPU multiplies it natively, but
MKL's for fp32 on the CPUs that it is made for. Values agree with `linear` to rounding.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from ..hardware import multiplies_bf16, prefers_mkl

FEWEST_ROWS = 4
"""Below, a product is a read through the weight, in whatever order it lies."""
MOST_BYTES = 256 * 2**20
"""What the layouts of a `Prepacker` may take in all. A module with larger matrices stays as it is."""
PATIENCE = 8
"""Steps with one number of rows before `Prepacker` lays matrices out for it, which takes about as long as one step."""
MOST_LAYOUTS = 4
"""Numbers of rows that a `Prepacker` keeps layouts for: as requests come and go, the same few numbers return."""


class PackedLinear(nn.Module):
    """`linear` for inputs of (..., in): by MKL fast for exactly so many `rows` in all, by oneDNN best with as many."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.rows = rows
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.by_mkl = self.weight.dtype == torch.float32 and prefers_mkl()
        reorder = torch.ops.mkl._mkl_reorder_linear_weight if self.by_mkl else torch.ops.mkldnn._reorder_linear_weight
        self.packed = reorder(self.weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        if self.by_mkl:
            return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def packed(layer: nn.Module, rows: int) -> nn.Module:
    """`layer` laid out for `rows` rows, or as it is where this machine cannot or the layer is more than one matrix."""
    return PackedLinear(layer, rows) if type(layer) is nn.Linear and can_pack(layer.weight, rows) else layer


def can_pack(weight: Tensor, rows: int) -> bool:
    """Whether this machine has an operator for products with a `weight` laid out beforehand, and it pays."""
    if rows < FEWEST_ROWS or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return multiplies_bf16()
    return weight.dtype == torch.float32 and torch.backends.mkl.is_available()


class Prepacker:
    """Runs a module for inference in steps of any number of rows, by packed copies for the numbers that recur.

    Copies are kept for at most MOST_LAYOUTS numbers of rows and MOST_BYTES in all; the one unused for longest makes
    room. Between two layouts lie at least PATIENCE steps, so that laying out never takes more than a part of the time.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.matrices = [part.weight for part in module.modules() if type(part) is nn.Linear]
        size = sum(weight.numel() * weight.element_size() for weight in self.matrices)
        self.most = min(MOST_LAYOUTS, MOST_BYTES // size) if size else 0
        self.twins: dict[int, nn.Module] = {}  # by number of rows, the last used one last
        self.steps: Counter[int] = Counter()  # with each other number of rows, since the last layout

    def __call__(self, rows: int) -> nn.Module:
        """The module to use for a step of `rows` rows: the same values, to rounding."""
        twin = self.twins.pop(rows, None)
        if twin is None:
            self.steps[rows] += 1
            if self.steps[rows] < PATIENCE or not self.most or not any(can_pack(w, rows) for w in self.matrices):
                return self.module
            if len(self.twins) == self.most:
                del self.twins[next(iter(self.twins))]
            self.steps.clear()
            twin = prepack(self.module, rows)
        self.twins[rows] = twin
        return twin


def prepack(module: nn.Module, rows: int) -> nn.Module:
    """A module with the same parameters whose linear layers are packed; all else is shared."""
    twin = copy.copy(module)
    twin._modules = {name: prepack(packed(child, rows), rows) for name, child in module._modules.items()}
    return twin
