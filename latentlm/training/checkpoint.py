"""Training checkpoints: writes and reads the tensors of a run, and gathers its whole weights for the export.

Place in the flow: 5, written and read by the trainer, with the `TrainerState` of `state.py` beside the tensors. Not the
folder that `latentlm.load` reads, which is written by `Trainer.export`.

    <folder>/checkpoints/step-00001234/
        state/*.safetensors   weights, optimiser, EMA; each rank writes its part, any number of processes reads it
        trainer.json          step, clock, data positions, random states, identity of the run, metadata

A checkpoint is written to a `.tmp` sibling, synced to disk and renamed, so a folder with the final name is complete.
`state/` is written by torch.distributed.checkpoint (DCP) as safetensors; nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from ..config import read_json
from ..errors import UserError
from ..run_folder import CHECKPOINTS, complete_steps, read_state, single_process, state_shapes
from ..weights import shape_mismatches
from .distributed import World
from .ema import EMA, clean_name
from .objective import PhaseTraining
from .parallelize import full_tensor


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message is one line. Earlier checkpoints are untouched."""


class Checkpoints:
    """The checkpoints of one run; every method is collective: all ranks call it."""

    def __init__(self, folder: str | Path, keep: int, world: World):
        self.folder = Path(folder) / CHECKPOINTS
        self.keep = keep
        self.world = world

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete_steps(self.folder)

    def latest(self) -> Path | None:
        return self.world.on_main(lambda: next(reversed(self.complete()), None))

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write `tensors` (plain or sharded) and `state` (JSON, of rank 0) as the checkpoint of `step`.

        Raises CheckpointError if it cannot be written; a partial checkpoint is removed.
        """
        final = self.folder / f"step-{step:08d}"
        if self.world.on_main(final.is_dir):
            return final
        temporary = final.with_suffix(".tmp")
        try:
            self.world.on_main(lambda: self._begin(temporary))
            with single_process():
                writer = dcp.HuggingFaceStorageWriter(str(temporary / "state"), save_distributed=True)
                dcp.save(dict(tensors), storage_writer=writer, no_dist=self.world.size == 1)
            self.world.on_main(lambda: self._complete(temporary, final, state))
        except (OSError, dcp.CheckpointException) as error:
            self.world.on_main(lambda: shutil.rmtree(temporary, ignore_errors=True))
            last = self.latest()
            kept = f"the last complete one is {last}" if last else "there is none before it"
            raise CheckpointError(f"{final}: checkpoint not written: {_reason(error)}; {kept}") from None
        return final

    def _begin(self, temporary: Path) -> None:
        for stale in self.folder.glob("step-*.tmp"):
            shutil.rmtree(stale)
        (temporary / "state").mkdir(parents=True)

    def _complete(self, temporary: Path, final: Path, state: Mapping[str, Any]) -> None:
        (temporary / "trainer.json").write_text(json.dumps(state), encoding="utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        os.replace(temporary, final)
        _sync(self.folder)
        for old in self.complete()[: -self.keep]:
            shutil.rmtree(old)

    def read_state(self, path: Path) -> dict[str, Any]:
        """The content of a checkpoint's trainer.json. Raises UserError, which names it, if it is missing or broken."""
        return self.world.on_main(lambda: read_json(path / "trainer.json"))

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of the checkpoint `path` into `tensors`, in place.

        Raises UserError, naming a file that is incomplete, or the first ten names and shapes that differ.
        """
        self.world.on_main(lambda: _check_fit(path, tensors))
        read_state(path, tensors, alone=self.world.size == 1)


def _check_fit(path: Path, tensors: Mapping[str, Tensor]) -> None:
    shapes = state_shapes(path)
    expected = {name: tuple(value.shape) for name, value in tensors.items()}
    if problems := shape_mismatches(shapes, expected):
        raise UserError(f"{path}: this checkpoint is of another model or optimiser; {problems}")


def _reason(error: OSError | dcp.CheckpointException) -> str:
    """The message of the OSError that DCP gathered from some rank; raises `error` again if there is none."""
    if isinstance(error, OSError):
        return str(error)
    causes = [cause for cause, _ in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            return str(cause)
    raise error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------ the tensors of a run


def run_tensors(model: nn.Module, phases: Sequence[PhaseTraining], ema: EMA | None) -> dict[str, Tensor]:
    """All tensors that training changes, by unique name; tied weights once, frozen ones not at all.

    model.*, optimizer.* and ema.* belong to the exported model, phases.NAME.* to other modules that a phase trains.
    """
    seen: set[int] = set()
    tensors = {f"model.{name}": value for name, value in _changing(model, seen)}
    for phase in phases:
        prefix = "" if phase.module is model else f"phases.{phase.name}."
        tensors |= {f"{prefix}model.{name}": value for name, value in _changing(phase.module, seen)}
        tensors |= {f"{prefix}optimizer.{name}": value for name, value in phase.optimizers.tensors().items()}
    return tensors | {f"ema.{name}": value for name, value in (ema.tensors() if ema else {}).items()}


def _changing(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The state of `module` by clean name, without frozen parameters and tensors in `seen`; extends `seen`."""
    for name, value in module.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        if id(value) not in seen and not frozen:
            seen.add(id(value))
            yield clean_name(name), value.detach()


def whole_weights(model: nn.Module, replaced: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The weights of `model` by clean name, unsharded, on the CPU, in the model's dtypes; weights in `replaced` (by
    name) take precedence. Collective; ranks with `keep` False get an empty dict."""
    by_id = {id(value): clean_name(name) for name, value in model.named_parameters()}
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        whole = full_tensor(replaced.get(by_id.get(id(value), ""), value))
        if keep:
            weights[clean_name(name)] = whole.to("cpu", value.dtype)
    return weights
