"""The tensors of a run: those that a checkpoint keeps, and the whole weights that leave it.

Place in the flow: between the trainer's model, optimisers and average and the files in `checkpoints/` and `model/`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .ema import EMA, clean_name
from .optim import Optimizers
from .parallelize import full_tensor


def run_tensors(model: nn.Module, optimizers: Optimizers, ema: EMA | None) -> dict[str, Tensor]:
    """All tensors of a run that change, by unique name; tied weights once, frozen ones not at all."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        if id(value) not in seen and not frozen:
            seen.add(id(value))
            tensors[f"model.{clean_name(name)}"] = value.detach()
    tensors |= {f"optimizer.{name}": value for name, value in optimizers.tensors().items()}
    return tensors | {f"ema.{name}": value for name, value in (ema.tensors() if ema else {}).items()}


def whole_weights(model: nn.Module, replaced: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The weights of `model` by clean name, unsharded, on the CPU, in the model's dtypes; those in `replaced` (by
    parameter) instead of its own. Collective; ranks that do not `keep` them get none."""
    by_id = {id(value): clean_name(name) for name, value in model.named_parameters()}
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        whole = full_tensor(replaced.get(by_id.get(id(value), ""), value))
        if keep:
            weights[clean_name(name)] = whole.to("cpu", value.dtype)
    return weights
