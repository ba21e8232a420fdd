"""Modules with their matrices laid out once for the number of rows that decoding multiplies them by.

Place in the flow: 4, between the model and the engine, between a head and its sampler. On CPU,
`torch.nn.functional.linear` rearranges the whole weight inside every product; with few rows that costs as much as
multiplying. Decoding uses the same weights with the same few rows again and again, so it rearranges them once, by the
operators that torch's own compiler uses for frozen weights: oneDNN's, in bf16 where the CPU multiplies it natively, but
MKL's for fp32 on the CPUs that it is made for. Values agree with `linear` to rounding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..hardware import mkl_is_at_home, multiplies_bf16

FEWEST_ROWS = 4
"""Below, a product is a read through the weight, in whatever order it lies."""
MOST_BYTES = 256 * 2**20
"""A module with larger matrices in all is left alone by `Packing`: it would be in memory twice."""
PATIENCE = 8
"""Steps with one number of rows before `Packing` lays matrices out for it, which takes about as long as one step."""


class PackedLinear(nn.Module):
    """`linear` for inputs of (..., in): by MKL fast for exactly so many `rows` in all, by oneDNN best with as many."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.rows = rows
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.by_mkl = self.weight.dtype == torch.float32 and mkl_is_at_home()
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


class Packing:
    """A module for inference in steps of any number of rows: with a packed twin once a number has come to stay."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.matrices = [part.weight for part in module.modules() if type(part) is nn.Linear]
        self.fits = sum(weight.numel() * weight.element_size() for weight in self.matrices) <= MOST_BYTES
        self.rows, self.steps, self.twin = 0, 0, module

    def __call__(self, rows: int) -> nn.Module:
        """The module to use for a step of `rows` rows: the same values, to rounding."""
        if rows != self.rows:
            self.rows, self.steps, self.twin = rows, 0, self.module
        self.steps += 1
        if self.steps == PATIENCE and self.fits and any(can_pack(weight, rows) for weight in self.matrices):
            self.twin = packed_twin(self.module, rows)
        return self.twin


def packed_twin(module: nn.Module, rows: int) -> nn.Module:
    """A module with the same parameters whose linear layers are packed; all else is shared."""
    twin = copy.copy(module)
    twin._modules = {name: packed_twin(packed(child, rows), rows) for name, child in module._modules.items()}
    return twin
