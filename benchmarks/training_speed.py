"""What the trainer costs over a plain eager loop: the same modules, the same batches, taking turns block by block.

The trainer draws batches from its loader, keeps the average of the weights, logs, and saves checkpoints. The plain loop
has its batches built beforehand and does what any loop must: forward, backward, clip, optimiser step. They interleave
from inside the trainer's own `fit`: after every block its loader hands the machine over to the plain loop.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from figures import Figure, seconds_of
from torch import nn

from latentlm.config import LatentLMRecipe, load_recipe
from latentlm.training.build import build_latentlm
from latentlm.training.distributed import World
from latentlm.training.optim import Optimizers
from latentlm.training.parallelize import resolve_precision
from latentlm.training.trainer import Trainer


class PlainLoop:
    """The loop that anyone would write: no log, no checkpoint, no average, no signals, no ranks."""

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

    def block(self, steps: int) -> tuple[float, int]:
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


class TurnTaking:
    """The trainer's loader, which ends each block of the trainer's by one of the plain loop's.

    A block of the trainer runs from one hand-over to the next, the drawing of its batches included.
    """

    def __init__(self, loader, plain: PlainLoop, steps: int):
        self.loader, self.plain, self.steps = loader, plain, steps
        self.num_streams = loader.num_streams
        self.trainer_blocks: list[tuple[float, int]] = []
        self.plain_blocks: list[tuple[float, int]] = []
        self.drawn = self.tokens = 0
        self.since = time.perf_counter()

    def next_step(self) -> list:
        if self.drawn == self.steps:
            self.hand_over()
        batches = self.loader.next_step()
        self.drawn += 1
        self.tokens += sum(batch.num_tokens for batch in batches)
        return batches

    def hand_over(self) -> None:
        self.trainer_blocks.append((time.perf_counter() - self.since, self.tokens))
        self.plain_blocks.append(self.plain.block(self.steps))
        self.drawn = self.tokens = 0
        self.since = time.perf_counter()

    def state_dict(self) -> dict:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.loader.load_state_dict(state)


def training_figure(recipe_name: str, overrides: dict, block: int, blocks: int) -> Figure:
    """Time a token in `Trainer.fit` over time a token in the plain loop, minus one: median over pairs of blocks.

    A checkpoint falls due every `save_every` steps, so its cost is measured by itself and spread over as many.
    """
    recipe = load_recipe(recipe_name, overrides)
    with tempfile.TemporaryDirectory() as folder:
        return _measure(recipe, Path(folder), block, blocks)


def _measure(recipe: LatentLMRecipe, folder: Path, block: int, blocks: int) -> Figure:
    run = build_latentlm(recipe, folder, World())
    prebuilt = [run.loader.next_step() for _ in range(block * (blocks + 1))]  # none twice: shapes vary, as they do
    plain = PlainLoop(copy.deepcopy(run.model), recipe, prebuilt)
    steps = block * (blocks + 2)  # the first block warms up; the last, which ends in a checkpoint, is not counted
    logged = {"steps": steps, "save_every": steps, "sample_every": None, "max_minutes": None}
    logged["log_every"] = min(recipe.training.log_every, block)
    loader = TurnTaking(run.loader, plain, block)
    trainer = Trainer(run.model, loader, recipe.training.model_copy(update=logged), folder)
    loader.since = time.perf_counter()
    trainer.fit()
    save_seconds = median(seconds_of(trainer.save) for _ in range(3))
    return _figure(loader, recipe, block, save_seconds)


def _figure(loader: TurnTaking, recipe: LatentLMRecipe, block: int, save_seconds: float) -> Figure:
    pairs = list(zip(loader.trainer_blocks[1:], loader.plain_blocks[1:], strict=True))
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
        "protocol": f"median over {len(pairs)} pairs of blocks of {block} steps in turn; loader, log and EMA inside; "
        f"a checkpoint spread over {recipe.training.save_every} steps of the plain loop",
    }
    what = "training overhead over a plain eager loop, a token"
    return Figure("training.overhead", what, overhead, "", "<= 0.05", detail)
