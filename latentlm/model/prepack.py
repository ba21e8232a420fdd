"""Copies of modules whose weights are prepacked for a fixed number of rows, which makes decoding on a CPU faster.

Place in the flow: 4, between the model and the engine, and between a head and its sampler.
On a CPU, `torch.nn.functional.linear` rearranges the weight in every product; with few rows that takes as long as the
product itself. Decoding multiplies the same weights by the same small number of rows many times, so the weights are
rearranged (packed) once, with the operators that torch's compiler uses for frozen weights: MKL's for fp32 on Intel
CPUs, else oneDNN's, also for bf16 where the CPU multiplies it natively. Results agree with `linear` to rounding.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn

from ..hardware import multiplies_bf16, prefers_mkl

FEWEST_ROWS = 4
"""With fewer rows, packing does not pay: the time of a product is that of reading the weight."""
MOST_BYTES = 256 * 2**20
"""Memory for all packed copies of a `Prepacker`. A module with larger matrices is not packed."""
PATIENCE = 8
"""Steps with the same number of rows before `Prepacker` packs for it; packing takes about as long as one step."""
MOST_LAYOUTS = 4
"""Packed copies that a `Prepacker` keeps: as requests come and go, the same few numbers of rows return."""


class PackedLinear(nn.Module):
    """`linear` with its weight packed for inputs (..., in) of `rows` rows in all.

    MKL's operator is fast for exactly this number of rows; oneDNN's is fastest near it.
    """

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
    """`layer` packed for `rows` rows; unchanged if it is no plain linear layer or this machine cannot pack it."""
    return PackedLinear(layer, rows) if type(layer) is nn.Linear and can_pack(layer.weight, rows) else layer


def can_pack(weight: Tensor, rows: int) -> bool:
    """Whether this machine has an operator for products with a packed `weight`, and packing pays."""
    if rows < FEWEST_ROWS or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return multiplies_bf16()
    return weight.dtype == torch.float32 and torch.backends.mkl.is_available()


class Prepacker:
    """Runs a module for inference; after PATIENCE steps with the same number of rows, by a copy packed for it.

    At most MOST_LAYOUTS copies of MOST_BYTES in all are kept; the least recently used one is dropped first. At least
    PATIENCE steps lie between two packings, so that packing takes a small share of the time.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.matrices = [part.weight for part in module.modules() if type(part) is nn.Linear]
        size = sum(weight.numel() * weight.element_size() for weight in self.matrices)
        self.most = min(MOST_LAYOUTS, MOST_BYTES // size) if size else 0
        self.twins: dict[int, nn.Module] = {}  # by number of rows, the most recently used one last
        self.steps: Counter[int] = Counter()  # steps by number of rows without a copy, since the last packing

    def __call__(self, rows: int) -> nn.Module:
        """The module for a step of `rows` rows. Its results agree with the original's to rounding."""
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
    """A copy of `module` whose linear layers are packed for `rows` rows; everything else is shared with it."""
    twin = copy.copy(module)
    twin._modules = {name: prepack(packed(child, rows), rows) for name, child in module._modules.items()}
    return twin
