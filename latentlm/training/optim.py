"""Optimisers and the learning-rate schedule.

Place in the flow: 5, built by the trainer from the model's named parameters.
AdamW decays weights of two or more dimensions, but no embedding (its rows are looked up, not multiplied), norm or
bias. Muon takes the matrices inside the stacks of blocks, AdamW the rest.
Legend: `L` matrices of one shape, `M` ≤ `N` their sides (a tall matrix is handled as its transpose).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import OptimizerConfig
from ..errors import UserError
from .ema import clean_name

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of the quintic x ← a·x + b·x³ + c·x⁵ on the singular values (Jordan et al. 2024)."""


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton–Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    The update is that of torch.optim.Muon with its default arguments, with two differences:
      cost  matrices of one shape go through the iteration as one stack, in bf16 on CUDA and in fp32 on CPU; torch's is
            always in bf16, which is several times slower on CPUs without native bf16;
      zero  a matrix whose gradient is all zero (a head whose modality is absent from this step) is not updated: the
            update has unit scale whatever the gradient, and would continue at full speed along the old momentum.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95, steps: int = 5
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for stack in _same_shape(group["params"]):
                self._step_stack(stack, group["lr"], group["weight_decay"], group["momentum"], group["steps"])

    def _step_stack(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float, steps: int) -> None:
        gradient = torch.stack([param.grad for param in params])  # (L, rows, columns)
        buffers = [self.state[param]["momentum_buffer"] for param in params]
        live = gradient.abs().amax(dim=(1, 2), keepdim=True) > 0  # (L, 1, 1)
        buffer = torch.stack(buffers)
        buffer = torch.where(live, buffer.lerp(gradient, 1 - momentum), buffer)
        torch._foreach_copy_(buffers, list(buffer.unbind()))
        update = orthogonalize(gradient.lerp(buffer, momentum), steps)
        rows, columns = params[0].shape
        update = update.mul_(-lr * math.sqrt(max(1.0, rows / columns)))
        update.sub_(torch.stack(params), alpha=lr * weight_decay)
        torch._foreach_add_(params, list(update.mul_(live).unbind()))


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """`matrices` (L, rows, columns) with all singular values moved near one (0.7 to 1.2 after five steps)."""
    tall = matrices.shape[1] > matrices.shape[2]
    a, b, c = NEWTON_SCHULZ
    x = matrices.mT if tall else matrices  # (L, M, N)
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.flatten(1).norm(dim=1).clamp_(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT  # (L, M, M)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype, copy=True)


def _same_shape(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    stacks: dict[torch.Size, list[Tensor]] = {}
    for param in params:
        stacks.setdefault(param.shape, []).append(param)
    yield from stacks.values()


class Optimizers:
    """The optimisers of one model, which step together and follow one schedule. Their state exists from the start."""

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        named = {clean_name(name): value for name, value in model.named_parameters() if value.requires_grad}
        if not named:
            raise UserError("the model has no trainable parameters")
        self.parameters = named
        embeddings = embedding_names(model)
        matrices = [name for name, value in named.items() if config.kind == "muon" and is_block_matrix(name, value)]
        self.optimizers: list[torch.optim.Optimizer] = []
        if config.kind == "muon":
            self.optimizers.append(_muon([named[name] for name in matrices], config))
        rest = {name: value for name, value in named.items() if name not in set(matrices)}
        decayed = [value for name, value in rest.items() if value.ndim >= 2 and name not in embeddings]
        plain = [value for name, value in rest.items() if value.ndim < 2 or name in embeddings]
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((decayed, config.weight_decay), (plain, 0.0))
            if params
        ]
        if groups:
            self.optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True))
        self._initialise()
        self.peaks = [group["lr"] for group in self._groups()]

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _initialise(self) -> None:
        """Create the state before the first step, so that a checkpoint can be loaded into its tensors."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    if isinstance(optimizer, Muon):
                        optimizer.state[param] = {"momentum_buffer": torch.zeros_like(param)}
                    else:
                        step = torch.zeros((), dtype=torch.float32, device=param.device)
                        moments = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
                        optimizer.state[param] = {"step": step, **moments}

    def set_factor(self, factor: float) -> None:
        """Learning rates = peak · factor."""
        for group, peak in zip(self._groups(), self.peaks, strict=True):
            group["lr"] = peak * factor

    @property
    def learning_rate(self) -> float:
        """The current learning rate of the first group, for the log."""
        return self._groups()[0]["lr"]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """All state tensors by `<parameter>.<state>`; loading a checkpoint copies into these."""
        owner = {param: optimizer for optimizer in self.optimizers for param in optimizer.state}
        return {
            f"{name}.{key}": value
            for name, param in self.parameters.items()
            for key, value in owner[param].state[param].items()
        }


def _muon(params: list[Tensor], config: OptimizerConfig) -> Muon:
    if not params:
        raise UserError("optimizer.kind muon: the model has no matrices inside '.blocks.' or '.layers.'; use adamw")
    if any(isinstance(param, DTensor) for param in params):
        raise UserError("optimizer.kind muon needs whole matrices: use training.parallel replicate, or adamw to shard")
    return Muon(params, config.muon_learning_rate, config.weight_decay)


def is_block_matrix(name: str, value: Tensor) -> bool:
    """Whether a parameter is a matrix inside a stack of blocks, which Muon trains; embeddings, projections: False."""
    return value.ndim == 2 and (".blocks." in f".{name}" or ".layers." in f".{name}")


def embedding_names(model: nn.Module) -> set[str]:
    """Names of the embedding tables."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {clean_name(name) for name, value in model.named_parameters() if id(value) in tables}


def learning_rate_factor(step: int, progress: float, config: OptimizerConfig) -> float:
    """Learning rate relative to its peak at 0-based `step`: linear warm-up times the decay at `progress` in [0, 1]."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = {
        "cosine": 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))),
        "linear": 1 - min(progress, 1.0),
        "constant": 1.0,
    }[config.schedule]
    return warmup * (config.final_fraction + (1 - config.final_fraction) * decay)
