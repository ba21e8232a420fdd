"""The training loop: one for the LatentLM, the baselines and the tokenizers.

Place in the flow: gives batches to any module with `module(batch, generator) -> {name: sum of that loss}`. Read `fit`,
then `_step`. The total is Σ_k weight_k · sum_k / count_k, where count_k runs over the targets of all micro-batches of
the step on all ranks, known before the first forward pass: so gradients are only ever added, and one process, many
processes and accumulation give the same step (PAPER §1.5: L = L_text + α·L_diffusion, weighted once, here).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainingConfig
from ..weights import save_weights
from .checkpoint import Checkpoints, random_state, set_random_state
from .contract import Batch, Loader, check
from .distributed import NamedSum, World, on_signals, set_threads
from .ema import EMA
from .folder import naming
from .logs import TrainLog
from .optim import Optimizers, learning_rate_factor
from .parallelize import parallelize, resolve_precision
from .record import Record
from .state import TrainingResult, TrainingState, Window, count_of, log_record
from .tensors import run_tensors, whole_weights

_DROPOUT_SEED = 0x5EED
"""Added to a micro-batch's seed for torch's global generator (dropout), which must not repeat the noise's numbers."""


class NonFiniteLoss(RuntimeError):
    """A loss or the gradient is NaN or infinite. The message names step, stream and loss; checkpoints are as before."""


class Trainer:
    """Trains `model` on `loader` into `folder`: train.jsonl, checkpoints/, and at the end weights in model/.

    loss_weights  by loss name, before `config.loss_weights`; 1 where neither has it
    identity      JSON values a resumed run must agree on (a recipe's model, the tokenizers' fingerprints)
    metadata      JSON values kept in every checkpoint, for people
    on_start      called on rank 0 before the first step, once a checkpoint is accepted or there is none; not at all
                  where nothing is left to train
    write         called on rank 0 with a path and the whole weights by name, to keep them there; None: `on_export` does
    on_export     called on rank 0 with the folder after the weights are there: config.json, tokenizers
    unit          what a batch's `num_tokens` counts, for the log
    on_sample     called on rank 0 with (model in eval mode with EMA weights, step) every `config.sample_every` steps;
                  the figures that it returns by name, if any, are logged

    Raises ValueError for a configuration that cannot run. Collective: every rank builds and fits one.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        config: TrainingConfig,
        folder: str | Path,
        *,
        world: World | None = None,
        loss_weights: Mapping[str, float] | None = None,
        identity: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        on_start: Callable[[], None] | None = None,
        write: Callable[[Path, Mapping[str, Tensor]], None] | None = save_weights,
        on_export: Callable[[Path], None] | None = None,
        on_sample: Callable[[nn.Module, int], Mapping[str, float] | None] | None = None,
        unit: str = "tokens",
        tensorboard: bool = False,
    ):
        self.world = world or World()
        check(config, loader, self.world, on_sample is not None)
        self.config, self.loader, self.folder = config, loader, Path(folder)
        self.metadata, self.write = dict(metadata or {}), write
        self.unit, self.tensorboard = unit, tensorboard
        self.on_start, self.on_export, self.on_sample = on_start, on_export, on_sample
        self.loss_weights = {**config.loss_weights, **(loss_weights or {})}
        self.model = model.to(self.world.device)
        self.precision = resolve_precision(self.world.device, config.precision)
        self.gradients = parallelize(self.model, config.parallel, self.world)
        self.optimizers = Optimizers(self.model, config.optimizer)
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.checkpoints = Checkpoints(self.folder, config.keep, self.world)
        self.identity = {
            "training.accumulation": config.accumulation,
            "training.seed": config.seed,
            "training.optimizer.kind": config.optimizer.kind,
            "training.ema": bool(config.ema),
            **(identity or {}),
        }
        self.state = TrainingState()
        self.last_losses: dict[str, float] = {}
        self._sum_counts, self._sum_losses = NamedSum(self.world), NamedSum(self.world)
        self._asked = False  # this process has had a signal
        self._stop = False  # one of the processes has: known by all, at the end of a step

    # ------------------------------------------------------------------ the loop

    def fit(self, resume: bool = True) -> TrainingResult:
        """Train to the end of the schedule, from the latest checkpoint in `folder` if there is one.

        Raises NonFiniteLoss, CheckpointError, OSError where the disk refuses something else, and ValueError where the
        checkpoint does not belong to this run or `resume` is False and the folder already has one. The first SIGINT or
        SIGTERM, in whichever process, ends the run with a checkpoint: after its step, or after the next one where it
        comes while a step is logged or sampled.
        """
        set_threads(self.config.threads, self.world)
        self._resume(resume)
        if self.on_start and self.progress < 1:
            self.world.on_main(self.on_start)
        started = time.monotonic() - self.state.seconds
        with self._log() as log, on_signals((signal.SIGINT, signal.SIGTERM), self._request_stop):
            if self.progress >= 1:
                log.say(f"nothing left to train: step {self.state.step} is the end of the schedule")
            while self.progress < 1 and not self._stop:
                self._step(lambda: time.monotonic() - started)
                step, done = self.state.step, self.progress >= 1 or self._stop
                if step % self.config.log_every == 0 or done:
                    log.write(self._log_record(), last=done)
                if step % self.config.save_every == 0 or done:
                    self.save()
                if self.config.sample_every and step % self.config.sample_every == 0:
                    self._sample(log)
            finished = self.progress >= 1
            if not finished:
                log.say(f"stopped at step {self.state.step}; checkpoint saved in {self.checkpoints.folder}")
        if self.state.step:
            self.export(self.folder / "model")
        return TrainingResult(self.state.step, self.state.seconds, finished, self.last_losses)

    @property
    def progress(self) -> float:
        """Share of the schedule that is done: by steps or by the clock, whichever is further. Equal on all ranks."""
        by_step = self.state.step / self.config.steps
        minutes = self.config.max_minutes
        return max(by_step, self.state.seconds / (60 * minutes)) if minutes else by_step

    def _step(self, clock: Callable[[], float]) -> None:
        """One optimiser step; one all-reduce for counts, one for gradients, one for what is logged."""
        batches = self.loader.next_step()
        counts = self._counts(batches)
        tokens = counts.pop("tokens")
        self.model.train()
        self.gradients.zero()
        sums = [self._accumulate(batch.to(self.world.device), counts) for batch in batches]
        self.gradients.reduce()
        norm = self.gradients.clip(self.config.optimizer.clip)
        self.optimizers.set_factor(learning_rate_factor(self.state.step, self.progress, self.config.optimizer))
        self.optimizers.step()
        if self.ema:
            self.ema.update(self.model)
        self._account(sums, norm, counts, tokens, clock)

    def _counts(self, batches: list[Batch]) -> dict[str, float]:
        """Targets by loss name, and tokens, over all micro-batches of all ranks."""
        local: dict[str, float] = {"tokens": sum(batch.num_tokens for batch in batches)}
        for batch in batches:
            for name, count in batch.target_counts().items():
                local[name] = local.get(name, 0) + count
        return self._sum_counts(local)

    def _accumulate(self, batch: Batch, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch; its loss sums, detached. Its randomness hangs on its seed alone."""
        generator = torch.Generator(self.world.device).manual_seed(batch.seed)
        torch.manual_seed(batch.seed + _DROPOUT_SEED)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            sums = self.model(batch, generator)
        total = torch.zeros((), device=self.world.device)
        for name, value in sums.items():
            count = count_of(name, counts)
            total = total + value * (self.loss_weights.get(name, 1.0) / count if count else 0.0)
        if total.requires_grad:
            total.backward()
        return {name: value.detach() for name, value in sums.items()}

    def _account(
        self,
        sums: list[dict[str, Tensor]],
        norm: Tensor,
        counts: Mapping[str, float],
        tokens: float,
        clock: Callable[[], float],
    ) -> None:
        """Read the step's numbers (the one wait for the device), check them, agree on them across ranks."""
        flat = [value.float() for micro in sums for value in micro.values()]
        values = iter(torch.stack([*flat, norm.float()]).tolist())
        local = [{name: next(values) for name in micro} for micro in sums]
        norm_value = next(values)
        totals: dict[str, float] = {"_seconds": clock() if self.world.is_main else 0.0, "_asked": float(self._asked)}
        for micro in local:
            for name, value in micro.items():
                totals[name] = totals.get(name, 0.0) + value
        totals = self._sum_losses(totals)
        seconds, self._stop = totals.pop("_seconds"), totals.pop("_asked") > 0
        if not all(map(math.isfinite, [*totals.values(), norm_value])):
            raise NonFiniteLoss(self._blame(local, norm_value))
        self.state.window.seconds += seconds - self.state.seconds
        self.state.window.add(totals, counts, norm_value, tokens)
        self.state.step += 1
        self.state.seconds = seconds
        self.state.tokens += tokens

    def _blame(self, local: list[dict[str, float]], norm: float) -> str:
        """Which stream and loss went wrong, from the ranks that know."""
        streams = range(self.world.rank, self.config.accumulation, self.world.size)
        mine = [
            f"loss {name!r} is {value} in micro-batch stream {stream}"
            for stream, micro in zip(streams, local, strict=True)
            for name, value in micro.items()
            if not math.isfinite(value)
        ]
        found = [text for texts in self.world.gather(mine) for text in texts]
        what = found[0] if found else f"all losses are finite but the gradient norm is {norm}"
        latest = self.checkpoints.latest()
        left = f"the last checkpoint is {latest}" if latest else "there is no checkpoint yet"
        return f"step {self.state.step + 1}: {what}; training stopped, {left}"

    def _log(self) -> TrainLog:
        return TrainLog(
            self.folder,
            first_step=self.state.step,
            first_seconds=self.state.seconds,
            steps=self.config.steps,
            minutes=self.config.max_minutes,
            unit=self.unit,
            enabled=self.world.is_main,
            tensorboard=self.tensorboard,
        )

    def _log_record(self) -> dict[str, Any]:
        """The record of the window since the last line, which ends here."""
        window, self.state.window = self.state.window, Window()
        self.last_losses = window.losses()
        return log_record(self.state, window, self.loss_weights, self.optimizers.learning_rate, self.unit)

    def _sample(self, log: TrainLog) -> None:
        """Rank 0 samples with the averaged weights; the run's randomness is as if it had not."""
        if self.world.is_main and self.on_sample:
            kept = random_state()
            self.model.eval()
            averaged = self.ema.applied(self.model) if self.ema else nullcontext()
            with torch.no_grad(), averaged, naming(self.folder):
                figures = self.on_sample(self.model, self.state.step)
            log.write_figures(self.state.step, figures or {})
            self.model.train()
            set_random_state(kept)
        self.world.barrier()

    def _request_stop(self, number: int) -> None:
        self._asked = True

    # -------------------------------------------------------------- state in and out

    def save(self) -> Path:
        """Write a checkpoint of this step; CheckpointError where the disk refuses."""
        parts = self.world.gather({"loader": self.loader.state_dict(), "random": random_state()})
        loader = dict(parts[0]["loader"])
        loader["streams"] = {name: value for part in parts for name, value in part["loader"]["streams"].items()}
        record = Record(
            identity=self.identity,
            state=self.state,
            ema_updates=self.ema.num_updates if self.ema else 0,
            loader=loader,
            random=[part["random"] for part in parts],
            metadata=self.metadata,
        )
        tensors = run_tensors(self.model, self.optimizers, self.ema)
        return self.checkpoints.save(self.state.step, tensors, record.dump())

    def _resume(self, wanted: bool) -> None:
        path = self.checkpoints.latest()
        if path is None:
            return
        if not wanted:
            raise ValueError(f"{self.folder}: already has checkpoints; resume, or choose another folder")
        record = Record.parse(path, self.checkpoints.record(path))
        record.check(path, self.identity)
        self.checkpoints.load(path, run_tensors(self.model, self.optimizers, self.ema))
        self.state = record.state
        if self.ema:
            self.ema.num_updates = record.ema_updates
        self.loader.load_state_dict(record.loader)
        if self.world.rank < len(record.random):
            set_random_state(record.random[self.world.rank])

    def export(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `ema.safetensors` (full tensors, EMA in the model's dtypes), then call
        `on_export`. Collective. Raises OSError, which names the file, where the disk refuses."""
        folder = Path(folder)
        self.world.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        if self.write:
            self._export_weights(self.write, folder / "model.safetensors", {})
            if self.ema:
                self._export_weights(self.write, folder / "ema.safetensors", self.ema.tensors())
        if self.on_export:
            self.world.on_main(naming(folder)(lambda: self.on_export(folder)))

    def _export_weights(self, write: Callable, path: Path, replaced: Mapping[str, Tensor]) -> None:
        weights = whole_weights(self.model, replaced, keep=self.world.is_main)
        self.world.on_main(naming(path)(lambda: write(path, weights)))
