"""A generator of a one-dimensional density against a discriminator, hinge loss; run as a script it trains.

    adversarial_run.py FOLDER [key=value ...] [start=STEP] [kill=PHASE:CALL]

`kill`: SIGKILL when the loss of that phase is asked for the so many-th time, in the middle of a step.
The generator learns by the adversarial loss, whose weight adapts to that of matching the discriminator's features, as
image and speech tokenizers do it; the discriminator takes what the generator made from the pass, without a second
forward.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny_run import parse, tiny_config
from torch import Tensor, nn

from latentlm.config import OptimizerConfig
from latentlm.training.distributed import World, finish, start
from latentlm.training.objective import Objective, Pass, Phase, Run, adaptive_weight
from latentlm.training.trainer import Trainer

CENTRE, SPREAD, EXAMPLES = 2.0, 0.5, 32
OPTIMIZER = OptimizerConfig(
    learning_rate=0.002, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=3, schedule="constant"
)


@dataclass(frozen=True)
class Samples:
    """values (B, 1) of the density that is to be learnt."""

    values: Tensor
    seed: int

    @property
    def num_tokens(self) -> int:
        return len(self.values)

    def target_counts(self) -> dict[str, int]:
        return {"examples": len(self.values)}

    def to(self, device) -> Samples:
        return replace(self, values=self.values.to(device))


class Density:
    """A loader of normal samples around CENTRE; the lanes have unequal numbers of them."""

    def __init__(self, num_lanes: int, world: World | None = None, seed: int = 0):
        world = world or World()
        self.num_lanes, self.seed = num_lanes, seed
        self.positions = dict.fromkeys(range(world.rank, num_lanes, world.size), 0)

    def next_step(self) -> list[Samples]:
        batches = [self._batch(lane, position) for lane, position in self.positions.items()]
        self.positions = {lane: position + 1 for lane, position in self.positions.items()}
        return batches

    def _batch(self, lane: int, position: int) -> Samples:
        seed = 1_000_003 * self.seed + 7919 * lane + 31 * position
        g = torch.Generator().manual_seed(seed)
        return Samples(CENTRE + SPREAD * torch.randn(EXAMPLES + 8 * (lane % 2), 1, generator=g), seed)

    def state_dict(self) -> dict:
        return {"lanes": {str(lane): position for lane, position in self.positions.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.positions = {lane: state["lanes"][str(lane)] for lane in self.positions}

    def close(self) -> None:
        """It has no workers."""


class Generator(nn.Module):
    """noise (B, 2) -> samples (B, 1)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.05))
        self.out = nn.Linear(32, 1)

    def forward(self, noise: Tensor) -> Tensor:
        return self.out(self.body(noise))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2))
        self.out = nn.Linear(32, 1)
        self.register_buffer("num_calls", torch.zeros(()))  # buffers are saved with it

    def features(self, values: Tensor) -> Tensor:
        return self.body(values)

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            self.num_calls += 1
        return self.out(self.features(values))


class Pair:
    """The two networks and their losses."""

    def __init__(self, seed: int = 0, begin: int = 0, matching: float = 0.5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator, self.discriminator = Generator(), Discriminator()
        self.begin, self.matching = begin, matching

    def make(self, batch: Samples, generator: torch.Generator) -> Tensor:
        return self.generator(torch.randn(len(batch.values), 2, generator=generator))

    def generator_loss(self, batch: Samples, generator: torch.Generator, one: Pass) -> dict[str, Tensor]:
        made = self.make(batch, generator)
        one.kept["made"] = made.detach()
        with torch.no_grad():
            wanted = self.discriminator.features(batch.values).mean(0)
        matching = (self.discriminator.features(made).mean(0) - wanted).abs().mean()
        losses = {"features": matching * len(made)}
        if one.step >= self.begin:
            adversarial = -self.discriminator(made).mean()
            weight = adaptive_weight(matching, adversarial, self.generator.out.weight, most=10.0)
            losses |= {"adversarial": weight * adversarial * len(made), "weight": weight * len(made)}
        return losses

    def discriminator_loss(self, batch: Samples, generator: torch.Generator, one: Pass) -> dict[str, Tensor]:
        real, made = self.discriminator(batch.values), self.discriminator(one.kept["made"])
        return {"hinge": (1 - real).clamp(min=0).sum() + (1 + made).clamp(min=0).sum()}

    def objective(self) -> Objective:
        weights = {"features": self.matching, "weight": 0.0}  # the weight is logged, not minimised
        return Objective(
            (
                Phase("generator", self.generator, self.generator_loss, OPTIMIZER, weights),
                Phase("discriminator", self.discriminator, self.discriminator_loss, OPTIMIZER, start=self.begin),
            )
        )


def adversarial(folder: Path | str, pair: Pair | None = None, world: World | None = None, seed: int = 0, **values):
    """A trainer of `pair` (of a new one: `seed` is of its weights and its data)."""
    pair = pair or Pair(seed)
    config = tiny_config(**{"loss_weights": {}, "seed": seed, **values})
    run = Run(model=pair.generator, objective=pair.objective(), unit="examples")
    return Trainer(run, Density(config.global_micro_batches, world, seed), config, folder, world=world)


def killed(loss, call: int):
    """`loss`, which ends this process when it is called for the `call`-th time."""
    calls = iter(range(1, 1_000_000))

    def run(*arguments):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*arguments)

    return run


def main(folder: str, *settings: str) -> None:
    world = start("cpu")
    values = parse(list(settings))
    pair = Pair(begin=int(values.pop("start", 0)))
    if kill := values.pop("kill", None):
        phase, call = kill.split(":")
        setattr(pair, f"{phase}_loss", killed(getattr(pair, f"{phase}_loss"), int(call)))
    adversarial(folder, pair, world, **values).fit()
    finish(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
