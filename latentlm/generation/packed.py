"""The diffusion head with its large matrices laid out once for the number of rows that sampling multiplies them by.

Place in the flow: 4, between a model's head and `latent.py`. On CPU, `torch.nn.functional.linear` rearranges the whole
weight inside every product; with few rows that costs as much as multiplying. A sampler uses the same weights with the
same few rows for every step of every latent, so it rearranges them once, by the operators that torch's own compiler
uses for frozen weights: MKL's in fp32, oneDNN's in bf16 where the CPU multiplies it natively. Values agree with
`linear` to rounding.
Legend: `M` rows, `W` head width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..hardware import multiplies_bf16
from ..model.heads import DiffusionHead

FEWEST_ROWS = 4
"""Below, a product is a read through the weight, in whatever order it lies."""


class PackedLinear(nn.Module):
    """`linear` without bias for inputs of (rows, in): in fp32 exactly so many rows, in bf16 best with as many."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.rows = rows
        self.weight = linear.weight.detach()
        if self.weight.dtype == torch.bfloat16:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        else:
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == torch.bfloat16:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, None, self.rows)


def can_pack(weight: Tensor) -> bool:
    """Whether this machine has an operator for products with a `weight` laid out beforehand."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return multiplies_bf16()
    return weight.dtype == torch.float32 and torch.backends.mkl.is_available()


def pack_head(head: DiffusionHead, rows: int) -> DiffusionHead:
    """`head`, or where the machine can, a twin for inference with `rows` rows: its FFNs packed, all else shared.

    A head that is being adapted stays as it is: its layers are more than one matrix.
    """
    adapted = any(type(layer) is not nn.Linear for block in head.blocks for layer in (block.ffn.up, block.ffn.down))
    if adapted or rows < FEWEST_ROWS or not can_pack(head.latent_in.weight):
        return head
    twin = _shallow(head)
    twin.blocks = nn.ModuleList(_shallow(block) for block in head.blocks)
    for block in twin.blocks:
        block.ffn = _shallow(block.ffn)
        block.ffn.up, block.ffn.down = PackedLinear(block.ffn.up, rows), PackedLinear(block.ffn.down, rows)
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    """A module with the same parameters and children, whose children may be exchanged."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
