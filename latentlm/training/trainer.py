"""The training loop: one for the LatentLM, the baselines and the tokenizers.

Place in the flow: 5, passes batches to any module with `module(batch, generator) -> {name: sum of that loss}`, or to
the phases of an `Objective`. Read `fit`, then `_step`, then `objective.py`. The total loss is Σ_k weight_k · sum_k /
count_k (PAPER §1.4: L = L_text + α·L_diffusion). count_k is the number of targets in all micro-batches of the step on
all ranks, known before the first forward pass. So gradients are simply added, and one process, several processes and
gradient accumulation give the same step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainingConfig
from ..errors import UserError
from ..weights import attach_path_to_oserror
from .checkpoint import Checkpoints, run_tensors, whole_weights
from .distributed import NamedSum, World, on_signals
from .ema import EMA
from .logs import TrainLog, log_record
from .objective import Pass, Run, begin, plain
from .protocols import Batch, Loader, check
from .state import LogWindow, RunProgress, TrainerState, TrainingResult, random_state, set_random_state


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is NaN or infinite. The message names step, lane and loss; checkpoints are kept."""


class Trainer:
    """Trains `run` on `loader` and writes train.jsonl, checkpoints/ and, at the end, model/ into `folder`.

    Collective: every rank builds one and calls `fit`. Raises UserError for a configuration that cannot run.
    """

    def __init__(
        self, run: Run, loader: Loader, config: TrainingConfig, folder: str | Path, *, world: World | None = None
    ):
        self.world = world or World()
        check(config, loader, self.world, run.on_sample is not None)
        self.run, self.config, self.loader, self.folder = run, config, loader, Path(folder)
        self.model = run.model
        self.objective = run.objective or plain(run.model, config.optimizer)
        self.phases = begin(self.objective, self.model, config, self.world)
        self.main = next((phase for phase in self.phases if phase.module is self.model), self.phases[0])
        self.loss_weights = {name: weight for phase in self.phases for name, weight in phase.loss_weights.items()}
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.checkpoints = Checkpoints(self.folder, config.keep, self.world)
        self.identity = {
            "training.global_micro_batches": config.global_micro_batches,
            "training.seed": config.seed,
            "training.optimizer.kind": config.optimizer.kind,
            "training.ema": bool(config.ema),
            **run.identity,
        }
        if len(self.phases) > 1:
            self.identity["phases"] = {phase.name: phase.phase.optimizer.kind for phase in self.phases}
        self.progress = RunProgress()
        self.last_losses: dict[str, float] = {}
        self._sum_counts, self._sum_losses = NamedSum(self.world), NamedSum(self.world)
        self._asked = False  # this process has received a signal
        self._stop = False  # any process has received one; updated on all ranks after each step

    # ------------------------------------------------------------------ the loop

    def fit(self, resume: bool = True) -> TrainingResult:
        """Train to the end of the schedule, from the latest checkpoint in `folder` if there is one.

        The first SIGINT or SIGTERM in any process ends the run with a checkpoint, after the current step, or after the
        next one if it arrives during logging or sampling. Raises NonFiniteLoss; CheckpointError or OSError if something
        cannot be written; UserError if the checkpoint is of another run, or `resume` is False and there is one.
        """
        self._resume(resume)
        self.progress.threads = torch.get_num_threads()
        first_step = self.progress.step
        if self.run.on_start and self.completed < 1:
            self.world.on_main(self.run.on_start)
        started = time.monotonic() - self.progress.seconds
        with self._log() as log, on_signals((signal.SIGINT, signal.SIGTERM), self._request_stop):
            if self.completed >= 1:
                log.say(f"nothing left to train: step {self.progress.step} is the end of the schedule")
            while self.completed < 1 and not self._stop:
                self._step(lambda: time.monotonic() - started)
                step, done = self.progress.step, self.completed >= 1 or self._stop
                if step % self.config.log_every == 0 or done:
                    log.write(self._log_record(), last=done)
                if step % self.config.save_every == 0 or done:
                    self.save()
                if self.config.sample_every and step % self.config.sample_every == 0:
                    self._sample(log)
            finished = self.completed >= 1
            if not finished:
                log.say(f"stopped at step {self.progress.step}; checkpoint saved in {self.checkpoints.folder}")
        if self.progress.step:
            self.export(self.folder / "model")
        num_trained = self.progress.step - first_step
        return TrainingResult(self.progress.step, num_trained, self.progress.seconds, finished, self.last_losses)

    @property
    def completed(self) -> float:
        """Completed share of the schedule, by steps or by the clock, whichever is further. Equal on all ranks."""
        by_step = self.progress.step / self.config.steps
        minutes = self.config.max_minutes
        return max(by_step, self.progress.seconds / (60 * minutes)) if minutes else by_step

    def _step(self, clock: Callable[[], float]) -> None:
        """One step of every phase, with one all-reduce for counts, one for gradients and one for logged values."""
        batches = self.loader.next_step()
        counts = self._counts(batches)
        tokens = counts.pop("tokens")
        self._train_mode()
        passes = [Pass(self.progress.step) for _ in batches]
        sums: list[dict[str, Tensor]] = [{} for _ in batches]
        norms: dict[str, Tensor] = {}
        for phase in self.phases:
            if self.progress.step >= phase.phase.start:
                found, norms[phase.name] = phase.step(batches, passes, counts, self.completed)
                _add(sums, found, phase.name)
        if self.ema:
            self.ema.update(self.model)
        self._account(sums, norms, counts, tokens, clock)

    def _train_mode(self) -> None:
        for module in (self.model, *(phase.module for phase in self.phases if phase is not self.main)):
            module.train()
        for network in self.objective.frozen:
            network.eval()

    def _counts(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Number of targets by loss name, and of tokens, in all micro-batches of all ranks."""
        local: dict[str, float] = {"tokens": sum(batch.num_tokens for batch in batches)}
        for batch in batches:
            for name, count in batch.target_counts().items():
                local[name] = local.get(name, 0) + count
        return self._sum_counts(local)

    def _account(
        self,
        sums: list[dict[str, Tensor]],
        norms: Mapping[str, Tensor],
        counts: Mapping[str, float],
        tokens: float,
        clock: Callable[[], float],
    ) -> None:
        """Read losses and norms of a step (the only wait for the device), sum them over ranks, check and log them."""
        flat = [value.float() for micro in sums for value in micro.values()]
        values = iter(torch.stack([*flat, *(norm.float() for norm in norms.values())]).tolist())
        local = [{name: next(values) for name in micro} for micro in sums]
        norm_values = dict(zip(norms, values, strict=True))
        totals: dict[str, float] = {"_seconds": clock() if self.world.is_main else 0.0, "_asked": float(self._asked)}
        for micro in local:
            for name, value in micro.items():
                totals[name] = totals.get(name, 0.0) + value
        totals = self._sum_losses(totals)
        seconds, self._stop = totals.pop("_seconds"), totals.pop("_asked") > 0
        if not all(map(math.isfinite, [*totals.values(), *norm_values.values()])):
            raise NonFiniteLoss(self._blame(local, norm_values))
        window = self.progress.window
        window.seconds += seconds - self.progress.seconds
        window.add(totals, counts, tokens)
        for name, norm in norm_values.items():
            if name == self.main.name:
                window.gradient_norm += norm
            else:
                window.add_norm(name, norm)
        self.progress.step += 1
        self.progress.seconds = seconds
        self.progress.tokens += tokens

    def _blame(self, local: list[dict[str, float]], norms: Mapping[str, float]) -> str:
        """The message of NonFiniteLoss: which lane and loss is not finite, gathered from all ranks."""
        lanes = range(self.world.rank, self.config.global_micro_batches, self.world.size)
        mine = [
            f"loss {name!r} is {value} in micro-batch lane {lane}"
            for lane, micro in zip(lanes, local, strict=True)
            for name, value in micro.items()
            if not math.isfinite(value)
        ]
        found = [text for texts in self.world.gather(mine) for text in texts]
        if found:
            what = found[0]
        else:
            name, norm = next(item for item in norms.items() if not math.isfinite(item[1]))
            of = f" of phase {name!r}" if len(self.phases) > 1 else ""
            what = f"all losses are finite but the gradient norm{of} is {norm}"
        latest = self.checkpoints.latest()
        left = f"the last checkpoint is {latest}" if latest else "there is no checkpoint yet"
        return f"step {self.progress.step + 1}: {what}; training stopped, {left}"

    def _log(self) -> TrainLog:
        return TrainLog(
            self.folder,
            first_step=self.progress.step,
            first_seconds=self.progress.seconds,
            steps=self.config.steps,
            minutes=self.config.max_minutes,
            unit=self.run.unit,
            enabled=self.world.is_main,
            tensorboard=self.run.tensorboard,
        )

    def _log_record(self) -> dict[str, Any]:
        """The log record of the steps since the last one; starts a new window."""
        window, self.progress.window = self.progress.window, LogWindow()
        self.last_losses = window.losses()
        under_way = [phase for phase in self.phases if phase is not self.main and phase.name in window.norms]
        rates = {phase.name: phase.optimizers.learning_rate for phase in (self.main, *under_way)}
        return log_record(self.progress, window, self.loss_weights, rates, self.run.unit)

    def _sample(self, log: TrainLog) -> None:
        """Sample on rank 0 with the averaged weights; the global random states are restored afterwards."""
        if self.world.is_main and self.run.on_sample:
            kept = random_state()
            with self.averaged(), attach_path_to_oserror(self.folder):
                figures = self.run.on_sample(self.model, self.progress.step)
            log.write_figures(self.progress.step, figures or {})
            log.show_samples(self.progress.step, self.folder / "samples")
            set_random_state(kept)
        self.world.barrier()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Context manager: the model in eval mode, without gradients, with the averaged weights if there are any."""
        self.model.eval()
        with torch.no_grad(), self.ema.applied(self.model) if self.ema else nullcontext():
            yield self.model
        self.model.train()

    def _request_stop(self, number: int) -> None:
        self._asked = True

    # -------------------------------------------------------------- state in and out

    def save(self) -> Path:
        """Write a checkpoint of this step. Raises CheckpointError if it cannot be written."""
        parts = self.world.gather({"loader": self.loader.state_dict(), "random": random_state()})
        loader = dict(parts[0]["loader"])
        loader["lanes"] = {name: value for part in parts for name, value in part["loader"]["lanes"].items()}
        state = TrainerState(
            identity=self.identity,
            progress=self.progress,
            ema_updates=self.ema.num_updates if self.ema else 0,
            loader=loader,
            random=[part["random"] for part in parts],
            metadata=dict(self.run.metadata),
        )
        tensors = run_tensors(self.model, self.phases, self.ema)
        return self.checkpoints.save(self.progress.step, tensors, state.dump())

    def _resume(self, wanted: bool) -> None:
        path = self.checkpoints.latest()
        if path is None:
            return
        if not wanted:
            raise UserError(f"{self.folder}: already has checkpoints; resume, or choose another folder")
        state = TrainerState.parse(path, self.checkpoints.read_state(path))
        state.check(path, self.identity)
        self.checkpoints.load(path, run_tensors(self.model, self.phases, self.ema))
        self.progress = state.progress
        if self.ema:
            self.ema.num_updates = state.ema_updates
        self.loader.load_state_dict(state.loader)
        if self.world.rank < len(state.random):
            set_random_state(state.random[self.world.rank])

    def export(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `ema.safetensors` (full tensors, EMA in the model's dtypes), then call
        `on_export`. Collective. Raises OSError, which names the file, if it cannot be written."""
        folder = Path(folder)
        self.world.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        write, on_export = self.run.write, self.run.on_export
        if write:
            self._export_weights(write, folder / "model.safetensors", {})
            if self.ema:
                self._export_weights(write, folder / "ema.safetensors", self.ema.tensors())
        if on_export:
            self.world.on_main(attach_path_to_oserror(folder)(lambda: on_export(folder)))

    def _export_weights(self, write: Callable, path: Path, replaced: Mapping[str, Tensor]) -> None:
        weights = whole_weights(self.model, replaced, keep=self.world.is_main)
        self.world.on_main(attach_path_to_oserror(path)(lambda: write(path, weights)))


def _add(sums: list[dict[str, Tensor]], found: list[dict[str, Tensor]], phase: str) -> None:
    """Add the losses of `phase`, by micro-batch, to those of earlier phases.

    Raises UserError for a name that occurs twice.
    """
    for known, new in zip(sums, found, strict=True):
        if twice := known.keys() & new.keys():
            raise UserError(f"phase {phase!r} has a loss {min(twice)!r}, and so has an earlier phase: rename one")
        known.update(new)
