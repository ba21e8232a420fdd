"""The folder of a run: its lock, its recipe, and whether a run may start or resume there.

Place in the flow: 5, below `run.py` and the demo, which ask here before they write anything into a folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..config import Recipe, SourceConfig
from ..errors import UserError
from ..run_folder import RECIPE
from ..weights import write_text
from .checkpoint import Checkpoints
from .distributed import World
from .state import TrainerState

LOCK = ".lock"


def holds_run(folder: Path) -> bool:
    """Whether `folder` has checkpoints or a model, which a new run would overwrite."""
    return (folder / "checkpoints").exists() or (folder / "model").exists()


@contextmanager
def locked_run_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Context manager: locks `folder`, which is created if missing, against other runs.

    Raises UserError if another run has locked it, and if it holds a run that is not to be resumed or cannot be. Prints
    a line to stderr if there is nothing to resume. On exit, if nothing but the lock is in the folder, the lock and the
    folders created here are removed.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another run is writing here; wait for its end, or choose another folder") from None
    try:
        _check(folder, resume)
        yield
    finally:
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            for path in created:
                if not any(path.iterdir()):
                    path.rmdir()
        lock.release()


def _check(folder: Path, resume: bool) -> None:
    resumable = bool(Checkpoints(folder, keep=1, world=World()).complete())
    if (folder / "model").exists() and not resumable:
        raise UserError(f"{folder}: holds a model, but no checkpoint to resume from; choose another folder")
    if holds_run(folder) and not resume:
        raise UserError(f"{folder}: already holds a run; resume it, or choose another folder")
    if resume and not resumable:
        print(f"{folder}: no checkpoint to resume from, training starts from the beginning", file=sys.stderr)


def check_resumed(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise UserError if the identity of the last checkpoint in `folder` differs from `identity` in one of its keys."""
    checkpoints = Checkpoints(folder, keep=1, world=World())
    path = checkpoints.latest()
    if path is not None:
        state = TrainerState.parse(path, checkpoints.read_state(path))
        replace(state, identity={key: state.identity.get(key) for key in identity}).check(path, identity)


def resumed_threads(folder: Path) -> int | None:
    """CPU threads per process of the last checkpoint in `folder`; None without one, and for an older release's."""
    checkpoints = Checkpoints(folder, keep=1, world=World())
    path = checkpoints.latest()
    return TrainerState.parse(path, checkpoints.read_state(path)).progress.threads if path else None


def check_sources(folder: Path, fingerprints: Sequence[str | None], sources: Sequence[SourceConfig]) -> None:
    """Raise UserError, naming the source, if the last checkpoint in `folder` was trained on other documents.

    A checkpoint of an older release has no fingerprints, and is accepted.
    """
    checkpoints = Checkpoints(folder, keep=1, world=World())
    path = checkpoints.latest()
    then = checkpoints.read_state(path)["identity"].get("data.sources") if path else None
    if then is None:
        return
    if len(then) != len(sources):
        raise UserError(f"{path}: was trained on {len(then)} data sources, this run has {len(sources)}; cannot resume")
    for source, before, now in zip(sources, then, fingerprints, strict=True):
        if before != now:
            raise UserError(
                f"{path}: was trained on other documents: data source {source.label!r} was changed or replaced; "
                "cannot resume"
            )


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write `recipe` to recipe.yaml in `folder`, atomically: other processes may be reading the file."""
    write_text(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
