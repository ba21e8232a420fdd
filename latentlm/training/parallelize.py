"""Parallelism applied to a single-device model from outside: replicated or sharded (FSDP2), and its precision.

Place in the flow: 5, the trainer passes the model and gets one object that owns the gradients: zero, reduce, clip.
Both kinds *sum* gradients over the ranks: the trainer has already divided every loss by its global count.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ..hardware import multiplies_bf16
from .distributed import World


def resolve_precision(device: torch.device, wish: str) -> str:
    """Returns `wish`, with "auto" replaced by "bf16" if the hardware multiplies bf16 natively, else by "fp32"."""
    if wish != "auto":
        return wish
    return "bf16" if multiplies_bf16(device) else "fp32"


class Replicated:
    """Every rank holds all weights. All gradients of one dtype are in one flat buffer, so that zeroing, the sum over
    ranks, the norm and the clip are one operation each. A parameter that a step does not use has a zero gradient."""

    def __init__(self, model: nn.Module, world: World):
        self.world = world
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        broadcast(model, world)
        self.buffers = [_flat_gradients(params) for params in _by_dtype(self.parameters)]

    def zero(self) -> None:
        torch._foreach_zero_(self.buffers)

    def reduce(self) -> None:
        for buffer in self.buffers:
            self.world.sum(buffer)

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients to a global norm of at most `limit`; returns the norm before, a scalar."""
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(b).float() for b in self.buffers]))
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for buffer in self.buffers:
            buffer.mul_(factor.to(buffer.dtype))
        return norm


class Sharded:
    """FSDP2: each block of the Transformer is a unit, everything else is the root unit. Parameters become DTensors.

    The heads stay in the root unit: a rank whose micro-batch lacks a modality would never enter a unit of its head, and
    the other ranks would wait for it forever.
    """

    def __init__(self, model: nn.Module, world: World):
        self.world = world
        broadcast(model, world)
        mesh = init_device_mesh(world.device.type, (world.size,))
        units = [block for name, block in model.named_modules() if _is_unit(name)]
        in_units = {id(value) for block in units for value in block.parameters()}
        model.register_forward_hook(_touch(model, in_units))
        for block in units:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self.parameters = [value for value in model.parameters() if value.requires_grad]

    def zero(self) -> None:
        for value in self.parameters:
            value.grad = None

    def reduce(self) -> None:
        """Does nothing: FSDP2 reduces the gradients during backward."""

    def clip(self, limit: float) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def parallelize(model: nn.Module, kind: str, world: World) -> Replicated | Sharded:
    """Apply `kind` (TrainingConfig.parallel) to `model`. A single process is always replicated."""
    return Sharded(model, world) if kind == "shard" and world.size > 1 else Replicated(model, world)


@torch.no_grad()
def broadcast(model: nn.Module, world: World) -> None:
    """Copy parameters and buffers of rank 0 to all ranks."""
    if world.size == 1:
        return
    for value in [*model.parameters(), *model.buffers()]:
        dist.broadcast(value, src=0)


def full_tensor(value: Tensor) -> Tensor:
    """The whole tensor, detached; gathered from its shards if it is a DTensor (collective)."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()


def _by_dtype(params: Iterable[Tensor]) -> list[list[Tensor]]:
    buckets: dict[torch.dtype, list[Tensor]] = {}
    for value in params:
        buckets.setdefault(value.dtype, []).append(value)
    return list(buckets.values())


def _flat_gradients(params: list[Tensor]) -> Tensor:
    """One zeroed buffer; every `param.grad` becomes a view into it, into which backward accumulates."""
    flat = torch.zeros(sum(value.numel() for value in params), dtype=params[0].dtype, device=params[0].device)
    pieces = flat.split([value.numel() for value in params])
    for value, piece in zip(params, pieces, strict=True):
        value.grad = piece.view_as(value)
    return flat


def _is_unit(name: str) -> bool:
    """Whether a module is a unit: `transformer.blocks.3`, `layers.0`; not under `heads.`, not inside a block."""
    parts = name.split(".")
    return (
        len(parts) >= 2
        and parts[-1].isdigit()
        and parts[-2] in ("blocks", "layers")
        and parts[0] != "heads"
        and (not any(part.isdigit() for part in parts[:-1]))
    )


def _touch(model: nn.Module, in_units: set[int]):
    """A hook that adds zero times every parameter of the root unit to the losses.

    FSDP2 reduces only the parameters that got a gradient, which must be the same on all ranks; a head that one rank
    does not use would break that. Registered before `fully_shard`, so that it runs while the parameters are whole.
    """
    names = [name for name, value in model.named_parameters() if value.requires_grad and id(value) not in in_units]

    def hook(module: nn.Module, args: tuple, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        zero = sum(module.get_parameter(name).flatten()[:1].sum() for name in names) * 0.0
        first = next(iter(losses))
        return losses | {first: losses[first] + zero}

    return hook
