"""Overhead of the trainer over a plain eager loop with the same modules and batches; the two take turns by blocks.

The trainer draws batches from its loader, keeps the average of the weights, logs, and saves checkpoints. The plain loop
has its batches built beforehand and does only forward, backward, clip and optimiser step. The trainer's `fit` runs the
plain loop for a block after each of its own.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from figures import Figure, seconds_of
from torch import nn

from latentlm.config import LatentLMRecipe, load_recipe
from latentlm.training.distributed import World
from latentlm.training.latentlm import build_latentlm, document_loader
from latentlm.training.objective import Run
from latentlm.training.optim import Optimizers
from latentlm.training.parallelize import resolve_precision
from latentlm.training.trainer import Trainer


class PlainLoop:
    """A minimal training loop: no log, checkpoint, average of the weights, signals or ranks."""

    def __init__(self, model: nn.Module, recipe: LatentLMRecipe, batches: list[list]):
        training = recipe.training
        self.model = model.train()
        self.optimizers = Optimizers(model, training.optimizer)
        self.parameters = [value for value in model.parameters() if value.requires_grad]
        self.weights = training.loss_weights
        self.limit = training.optimizer.clip
        self.autocast = resolve_precision(torch.device("cpu"), training.precision) == "bf16"
        self.batches = batches
        self.step = 0

    def run(self, steps: int) -> tuple[float, int]:
        """Seconds and tokens of the next steps."""
        tokens, started = 0, time.perf_counter()
        for _ in range(steps):
            batches = self.batches[self.step]
            self.step += 1
            tokens += sum(batch.num_tokens for batch in batches)
            self._step(batches)
        return time.perf_counter() - started, tokens

    def _step(self, batches: list) -> None:
        counts: dict[str, int] = {}
        for batch in batches:
            for name, count in batch.target_counts().items():
                counts[name] = counts.get(name, 0) + count
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                sums = self.model(batch, torch.Generator().manual_seed(batch.seed))
            total = sum(self.weights.get(name, 1.0) / counts[name] * sums[name] for name in sums if counts[name])
            total.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.limit)
        self.optimizers.step()


class TurnTaking(Trainer):
    """A trainer that runs a block of the plain loop after each block of its own steps.

    Work of the trainer between its steps is included in its blocks.
    """

    def __init__(self, *arguments, plain: PlainLoop, block: int):
        super().__init__(*arguments)
        self.plain, self.block = plain, block
        self.trainer_blocks: list[tuple[float, float]] = []
        self.plain_blocks: list[tuple[float, int]] = []
        self.since, self.tokens_then = time.perf_counter(), 0.0

    def _step(self, clock: Callable[[], float]) -> None:
        if self.progress.step and self.progress.step % self.block == 0:
            self._hand_over()
        super()._step(clock)

    def _hand_over(self) -> None:
        self.trainer_blocks.append((time.perf_counter() - self.since, self.progress.tokens - self.tokens_then))
        self.plain_blocks.append(self.plain.run(self.block))
        self.since, self.tokens_then = time.perf_counter(), self.progress.tokens


def training_figure(recipe_name: str, overrides: dict, block: int, blocks: int) -> Figure:
    """Time per token in `Trainer.fit` divided by that in the plain loop, minus one: median over pairs of blocks.

    The cost of a checkpoint is measured separately and spread over `save_every` steps.
    """
    recipe = load_recipe(recipe_name, overrides)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(recipe, Path(folder), block, blocks)


def _measure(recipe: LatentLMRecipe, folder: Path, block: int, blocks: int) -> Figure:
    run = build_latentlm(recipe, folder, World())
    loader = document_loader(recipe, run, World())
    prebuilt = [loader.next_step() for _ in range(block * (blocks + 1))]  # no batch twice, as shapes vary in training
    plain = PlainLoop(copy.deepcopy(run.model), recipe, prebuilt)
    steps = block * (blocks + 2)  # the first block warms up; the last, which ends in a checkpoint, is not counted
    logged = {"steps": steps, "save_every": steps, "sample_every": None, "max_minutes": None}
    logged["log_every"] = min(recipe.training.log_every, block)
    config = recipe.training.model_copy(update=logged)
    trainer = TurnTaking(Run(model=run.model), loader, config, folder, plain=plain, block=block)
    trainer.fit()
    return _figure(trainer, recipe, block, median(_save_seconds(trainer) for _ in range(3)))


def _save_seconds(trainer: Trainer) -> float:
    """Seconds to save a checkpoint of a new step."""
    trainer.progress.step += 1
    return seconds_of(trainer.save)


def _figure(trainer: TurnTaking, recipe: LatentLMRecipe, block: int, save_seconds: float) -> Figure:
    pairs = list(zip(trainer.trainer_blocks[1:], trainer.plain_blocks[1:], strict=True))
    ratios = [(a / tokens_a) / (b / tokens_b) for (a, tokens_a), (b, tokens_b) in pairs]
    step_seconds = median(b for _, (b, _) in pairs) / block
    saving = save_seconds / (recipe.training.save_every * step_seconds)
    overhead = median(ratios) - 1 + saving
    detail = {
        "trainer_tokens_per_second": median(tokens / seconds for (seconds, tokens), _ in pairs) / (1 + saving),
        "plain_tokens_per_second": median(tokens / seconds for _, (seconds, tokens) in pairs),
        "loop_overhead": median(ratios) - 1,
        "checkpoint_overhead": saving,
        "checkpoint_seconds": save_seconds,
        "ratios": ratios,
        "protocol": f"median over {len(pairs)} pairs of blocks of {block} steps in turn; with loader, log and EMA; "
        f"a checkpoint spread over {recipe.training.save_every} steps of the plain loop",
    }
    what = "training overhead over a plain eager loop, per token"
    return Figure("training.overhead", what, overhead, "", "<= 0.05", detail)
