"""What a run trains, and what a step of it optimises: one phase, or several that train against each other.

Place in the flow: between the trainer's loop and the modules. A `Phase` is a module, a loss and an optimiser; the plain
case, `plain(model, …)`, is one phase with the model's own losses. A tokenizer with a discriminator is two:

    step:  phase "tokenizer"      forward, backward into its own parameters, sum over ranks, clip, optimiser
           phase "discriminator"  the same, on what the first phase kept of each micro-batch

A phase's gradients reach its own parameters alone, however many networks its loss runs through. Losses are sums, which
are divided by the global count of their targets, as in the plain case: several processes take the steps of one.
Networks that only measure (perceptual losses) are `Objective.frozen`: neither trained nor saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimizerConfig, TrainingConfig
from ..errors import UserError
from ..weights import save_weights
from .distributed import World
from .optim import Optimizers, learning_rate_factor
from .parallelize import broadcast, parallelize, resolve_precision
from .protocols import Batch
from .state import count_of

_DROPOUT_SEED = 0x5EED
"""Added to a micro-batch's seed for torch's global generator (dropout), which must not repeat the noise's numbers."""

ADAPTIVE_EPSILON = 1e-4
ADAPTIVE_MOST = 1e4


@dataclass
class Pass:
    """One micro-batch on its way through the phases of step `step` (0-based).

    kept  what a phase leaves for the phases after it, by name. A tensor that is kept with its graph can still be
          differentiated by the phase that owns its parameters; a detached one costs its own memory alone.
    """

    step: int
    kept: dict[str, Any] = field(default_factory=dict)


Loss = Callable[[Any, torch.Generator, Pass], Mapping[str, Tensor]]
"""(batch, generator, pass) -> sums of named losses; no two phases give one of the same name."""


@dataclass(frozen=True)
class Phase:
    """Parameters, and the loss and optimiser that train them.

    name          of its state in checkpoints, and of its learning rate and gradient norm in the log
    module        all its trainable parameters, and no others, are trained
    loss          what is computed from each micro-batch
    optimizer     optimiser, learning rate and its schedule, clip
    loss_weights  by name of the loss, over `training.loss_weights`; 1 where neither has it
    start         the first step (0-based) that it takes part in; its warm-up begins there
    """

    name: str
    module: nn.Module
    loss: Loss
    optimizer: OptimizerConfig
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    start: int = 0


@dataclass(frozen=True)
class Objective:
    """`phases` in the order of a step; `frozen` networks are moved to the device and stay in eval mode."""

    phases: tuple[Phase, ...]
    frozen: tuple[nn.Module, ...] = ()

    def check(self, model: nn.Module) -> None:
        """UserError for no phase, a name that is none or comes twice, and parameters that two phases would train."""
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise UserError(f"phases need distinct names, each an identifier; got {names}")
        owners: dict[int, str] = {}
        for phase in self.phases:
            for name, value in phase.module.named_parameters():
                if value.requires_grad and (other := owners.setdefault(id(value), phase.name)) != phase.name:
                    raise UserError(f"phases {other!r} and {phase.name!r} both train {name}")
        if not any(id(value) in owners for value in model.parameters()):
            raise UserError(f"none of the phases {', '.join(names)} trains the model that is exported")


@dataclass(kw_only=True)
class Run:
    """What is trained, and what is done around it. A kind of recipe may add fields for itself.

    model         what is averaged, sampled and exported
    objective     how it is trained; by default by its own losses alone
    identity      JSON values a resumed run must agree on (a recipe's model, the tokenizers' fingerprints)
    metadata      JSON values kept in every checkpoint, for people
    unit          what a batch's `num_tokens` counts, for the log
    tensorboard   whether to log there, too
    on_start      called on rank 0 before the first step, once a checkpoint is accepted or there is none; not at all
                  where nothing is left to train
    write         called on rank 0 with a path and the whole weights by name, to keep them there; None: `on_export` does
    on_export     called on rank 0 with the folder after the weights are there: config.json, tokenizers
    on_sample     called on rank 0 with (model in eval mode with EMA weights, step) every `training.sample_every` steps;
                  the figures that it returns by name, if any, are logged
    """

    model: nn.Module
    objective: Objective | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "tokens"
    tensorboard: bool = False
    on_start: Callable[[], None] | None = None
    write: Callable[[Path, Mapping[str, Tensor]], None] | None = save_weights
    on_export: Callable[[Path], None] | None = None
    on_sample: Callable[[nn.Module, int], Mapping[str, float] | None] | None = None


def plain(model: nn.Module, optimizer: OptimizerConfig, loss_weights: Mapping[str, float] | None = None) -> Objective:
    """One phase: all of `model`, by the losses `model(batch, generator)`."""
    loss: Loss = lambda batch, generator, _: model(batch, generator)  # noqa: E731
    return Objective((Phase("model", model, loss, optimizer, loss_weights or {}),))


def adaptive_weight(reference: Tensor, loss: Tensor, weight: Tensor, most: float = ADAPTIVE_MOST) -> Tensor:
    """‖∂reference/∂weight‖ / (‖∂loss/∂weight‖ + 1e-4), at most `most`, detached: a scalar that makes the gradient of
    `loss` at the parameter `weight` as long as that of `reference` (Esser et al. 2021, λ of VQGAN's equation 7).

    reference and loss are scalars, means over one micro-batch; weight is that of the last layer that both run through.
    Within a phase's loss this is one number per micro-batch, so it does not depend on the number of processes.
    """
    norms = [torch.autograd.grad(value, weight, retain_graph=True)[0].float().norm() for value in (reference, loss)]
    return (norms[0] / (norms[1] + ADAPTIVE_EPSILON)).clamp(max=most).detach()


class PhaseTraining:
    """A phase under way: its gradients, its optimiser, its part of a step."""

    def __init__(self, phase: Phase, number: int, config: TrainingConfig, world: World, alone: bool):
        self.phase, self.number, self.world = phase, number, world
        self.name, self.module = phase.name, phase.module.to(world.device)
        self.loss_weights = {**config.loss_weights, **phase.loss_weights}
        self.precision = resolve_precision(world.device, config.precision)
        self.gradients = parallelize(self.module, config.parallel, world)
        self.optimizers = Optimizers(self.module, phase.optimizer)
        self.inputs = None if alone else self.gradients.parameters  # what backward reaches; None: all that it can

    def step(
        self, batches: Sequence[Batch], passes: Sequence[Pass], counts: Mapping[str, float], progress: float
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """One step of the optimiser; the loss sums of each micro-batch and the norm of the gradient, detached."""
        self.gradients.zero()
        sums = [
            self._accumulate(batch.to(self.world.device), one, counts)
            for batch, one in zip(batches, passes, strict=True)
        ]
        self.gradients.reduce()
        norm = self.gradients.clip(self.phase.optimizer.clip)
        done = passes[0].step - self.phase.start
        self.optimizers.set_factor(learning_rate_factor(done, progress, self.phase.optimizer))
        self.optimizers.step()
        return sums, norm

    def _accumulate(self, batch: Batch, one: Pass, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; its loss sums, detached. Its randomness hangs on its seed alone."""
        generator = torch.Generator(self.world.device).manual_seed(batch.seed + self.number)
        torch.manual_seed(batch.seed + self.number + _DROPOUT_SEED)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            sums = self.phase.loss(batch, generator, one)
        total = torch.zeros((), device=self.world.device)
        for name, value in sums.items():
            count = count_of(name, counts)
            total = total + value * (self.loss_weights.get(name, 1.0) / count if count else 0.0)
        if total.requires_grad:
            total.backward(inputs=self.inputs)
        return {name: value.detach() for name, value in sums.items()}


def begin(objective: Objective, model: nn.Module, config: TrainingConfig, world: World) -> list[PhaseTraining]:
    """The phases of `objective` on their device, equal on all ranks. UserError for phases that do not go together, or
    that `training.parallel` cannot have."""
    objective.check(model)
    if len(objective.phases) > 1 and config.parallel == "shard" and world.size > 1:
        names = ", ".join(phase.name for phase in objective.phases)
        raise UserError(f"training.parallel shard is for a single phase, this run has {names}: use replicate")
    model.to(world.device)
    alone = [phase.module for phase in objective.phases] == [model]
    phases = [PhaseTraining(phase, number, config, world, alone) for number, phase in enumerate(objective.phases)]
    for network in objective.frozen:
        network.to(world.device).requires_grad_(False).eval()
    for module in () if alone else (model, *objective.frozen):
        broadcast(module, world)
    return phases
