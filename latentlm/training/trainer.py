"""The training loop: one for the LatentLM, the baselines and the tokenizers.

Place in the flow: gives batches to any module with `module(batch, generator) -> {name: sum of that loss}`, or to the
phases of an `Objective`. Read `fit`, then `_step`, then `objective.py`. The total is Σ_k weight_k · sum_k / count_k,
where count_k runs over the targets of all micro-batches of the step on all ranks, known before the first forward pass:
so gradients are only ever added, and one process, many processes and accumulation give the same step (PAPER §1.5:
L = L_text + α·L_diffusion, weighted once, here).
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
from .distributed import NamedSum, World, on_signals, set_threads
from .ema import EMA
from .logs import TrainLog, log_record
from .objective import Pass, Run, begin, plain
from .protocols import Batch, Loader, check
from .state import LogWindow, RunProgress, TrainerState, TrainingResult, random_state, set_random_state


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient is NaN or infinite. The message names step, lane and loss; checkpoints are as before."""


class Trainer:
    """Trains `run` on `loader` into `folder`: train.jsonl, checkpoints/, and at the end weights in model/.

    Raises UserError for a configuration that cannot run. Collective: every rank builds and fits one.
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
        self.state = RunProgress()
        self.last_losses: dict[str, float] = {}
        self._sum_counts, self._sum_losses = NamedSum(self.world), NamedSum(self.world)
        self._asked = False  # this process has had a signal
        self._stop = False  # one of the processes has: known by all, at the end of a step

    # ------------------------------------------------------------------ the loop

    def fit(self, resume: bool = True) -> TrainingResult:
        """Train to the end of the schedule, from the latest checkpoint in `folder` if there is one.

        Raises NonFiniteLoss, CheckpointError, OSError where the disk refuses something else, and UserError where the
        checkpoint does not belong to this run or `resume` is False and the folder already has one. The first SIGINT or
        SIGTERM, in whichever process, ends the run with a checkpoint: after its step, or after the next one where it
        comes while a step is logged or sampled.
        """
        set_threads(self.config.threads, self.world)
        self._resume(resume)
        if self.run.on_start and self.progress < 1:
            self.world.on_main(self.run.on_start)
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
        """One step of every phase; one all-reduce for counts, one for gradients, one for what is logged."""
        batches = self.loader.next_step()
        counts = self._counts(batches)
        tokens = counts.pop("tokens")
        self._train_mode()
        passes = [Pass(self.state.step) for _ in batches]
        sums: list[dict[str, Tensor]] = [{} for _ in batches]
        norms: dict[str, Tensor] = {}
        for phase in self.phases:
            if self.state.step >= phase.phase.start:
                found, norms[phase.name] = phase.step(batches, passes, counts, self.progress)
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
        """Targets by loss name, and tokens, over all micro-batches of all ranks."""
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
        """Read the step's numbers (the one wait for the device), check them, agree on them across ranks."""
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
        window = self.state.window
        window.seconds += seconds - self.state.seconds
        window.add(totals, counts, tokens)
        for name, norm in norm_values.items():
            if name == self.main.name:
                window.gradient_norm += norm
            else:
                window.add_norm(name, norm)
        self.state.step += 1
        self.state.seconds = seconds
        self.state.tokens += tokens

    def _blame(self, local: list[dict[str, float]], norms: Mapping[str, float]) -> str:
        """Which lane and loss went wrong, from the ranks that know."""
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
        return f"step {self.state.step + 1}: {what}; training stopped, {left}"

    def _log(self) -> TrainLog:
        return TrainLog(
            self.folder,
            first_step=self.state.step,
            first_seconds=self.state.seconds,
            steps=self.config.steps,
            minutes=self.config.max_minutes,
            unit=self.run.unit,
            enabled=self.world.is_main,
            tensorboard=self.run.tensorboard,
        )

    def _log_record(self) -> dict[str, Any]:
        """The record of the window since the last line, which ends here."""
        window, self.state.window = self.state.window, LogWindow()
        self.last_losses = window.losses()
        under_way = [phase for phase in self.phases if phase is not self.main and phase.name in window.norms]
        rates = {phase.name: phase.optimizers.learning_rate for phase in (self.main, *under_way)}
        return log_record(self.state, window, self.loss_weights, rates, self.run.unit)

    def _sample(self, log: TrainLog) -> None:
        """Rank 0 samples with the averaged weights; the run's randomness is as if it had not."""
        if self.world.is_main and self.run.on_sample:
            kept = random_state()
            with self.averaged(), attach_path_to_oserror(self.folder):
                figures = self.run.on_sample(self.model, self.state.step)
            log.write_figures(self.state.step, figures or {})
            set_random_state(kept)
        self.world.barrier()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Context manager: the model in eval mode, without gradients, with the averaged weights where there are any."""
        self.model.eval()
        with torch.no_grad(), self.ema.applied(self.model) if self.ema else nullcontext():
            yield self.model
        self.model.train()

    def _request_stop(self, number: int) -> None:
        self._asked = True

    # -------------------------------------------------------------- state in and out

    def save(self) -> Path:
        """Write a checkpoint of this step; CheckpointError where the disk refuses."""
        parts = self.world.gather({"loader": self.loader.state_dict(), "random": random_state()})
        loader = dict(parts[0]["loader"])
        loader["lanes"] = {name: value for part in parts for name, value in part["loader"]["lanes"].items()}
        record = TrainerState(
            identity=self.identity,
            state=self.state,
            ema_updates=self.ema.num_updates if self.ema else 0,
            loader=loader,
            random=[part["random"] for part in parts],
            metadata=dict(self.run.metadata),
        )
        tensors = run_tensors(self.model, self.phases, self.ema)
        return self.checkpoints.save(self.state.step, tensors, record.dump())

    def _resume(self, wanted: bool) -> None:
        path = self.checkpoints.latest()
        if path is None:
            return
        if not wanted:
            raise UserError(f"{self.folder}: already has checkpoints; resume, or choose another folder")
        record = TrainerState.parse(path, self.checkpoints.record(path))
        record.check(path, self.identity)
        self.checkpoints.load(path, run_tensors(self.model, self.phases, self.ema))
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
    """Put what `phase` found of each micro-batch beside what earlier phases did. UserError for a name they had."""
    for known, new in zip(sums, found, strict=True):
        if twice := known.keys() & new.keys():
            raise UserError(f"phase {phase!r} gives a loss {min(twice)!r}, as an earlier phase does: name it otherwise")
        known.update(new)
