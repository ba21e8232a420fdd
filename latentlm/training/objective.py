"""The objective of a run: one phase, or several that train against each other.

Place in the flow: 5, between the trainer's loop and the modules. A `Phase` is a module, a loss and an optimiser; the
plain case, `plain(model, …)`, is one phase with the model's own losses. A tokenizer with a discriminator has two:

    step:  phase "tokenizer"      forward, backward into its own parameters, sum over ranks, clip, optimiser
           phase "discriminator"  the same, on the tensors that the first phase kept of each micro-batch

Only the phase's own parameters get gradients, however many networks its loss runs through. Losses are sums that are
divided by the global count of their targets, so that several processes take the same steps as one. Networks that are
only evaluated (perceptual losses) are `Objective.frozen`: neither trained nor saved.
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
"""Added to a micro-batch's seed for torch's global generator (dropout), so that it differs from the diffusion noise."""

ADAPTIVE_EPSILON = 1e-4
ADAPTIVE_MOST = 1e4


@dataclass
class Pass:
    """The state of one micro-batch while it passes through the phases of step `step` (0-based).

    kept  values that a phase leaves for later phases, by name. A tensor that is kept with its graph can still be
          differentiated by the phase that owns its parameters; a detached one only takes its own memory.
    """

    step: int
    kept: dict[str, Any] = field(default_factory=dict)


Loss = Callable[[Any, torch.Generator, Pass], Mapping[str, Tensor]]
"""(batch, generator, pass) -> sums of named losses; the names of all phases differ."""


@dataclass(frozen=True)
class Phase:
    """Parameters, with the loss and the optimiser that train them.

    name          name in checkpoints, and of its learning rate and gradient norm in the log
    module        all its trainable parameters are trained, and no others
    loss          the loss of a micro-batch
    optimizer     optimiser, learning rate and its schedule, clip
    loss_weights  weights by name of the loss, before those of `training.loss_weights`; default 1
    start         the first step (0-based) of this phase; its warm-up begins there
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
        """Raise UserError for no phases, invalid or equal names, and parameters that two phases would train."""
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
    """A model to train, with callbacks. A kind of recipe may add fields in a subclass.

    model         the model that is averaged, sampled and exported
    objective     how it is trained; default: by its own losses
    identity      JSON values that a resumed run must have too (the model's config, fingerprints of tokenizers and data)
    metadata      JSON values for people, kept in every checkpoint
    unit          unit of a batch's `num_tokens`: tokens or examples
    tensorboard   whether to log to TensorBoard
    on_start      called on rank 0 before the first step, after a checkpoint is accepted, if anything is left to train
    write         called on rank 0 with a path and the whole weights by name, to save them; None: `on_export` saves them
    on_export     called on rank 0 with the folder, after the weights are saved there: config.json, tokenizers
    on_sample     called on rank 0 every `training.sample_every` steps with (model in eval mode with averaged weights,
                  step); figures that it returns by name are logged
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
    """The factor that makes the gradient of `loss` at the parameter `weight` as long as that of `reference`, detached:
    min(‖∂reference/∂weight‖ / (‖∂loss/∂weight‖ + 1e-4), most)        (Esser et al. 2021, λ of VQGAN's equation 7)

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
        self.inputs = None if alone else self.gradients.parameters  # parameters that get gradients; None: all

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
        """Forward and backward of one micro-batch; returns its loss sums, detached. Its seed fixes all randomness."""
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
    """The phases of `objective` on their device, equal on all ranks. Raises UserError for phases that cannot be
    combined, or that `training.parallel` does not support."""
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
