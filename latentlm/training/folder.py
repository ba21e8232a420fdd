"""The folder of a run: who may train in it and the recipe that lies there.

Place in the flow: below `run.py` and the demo, which ask here before they write anything into a folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..config import Recipe
from ..errors import UserError
from ..weights import write_text
from .checkpoint import Checkpoints
from .distributed import World
from .state import TrainerState

RECIPE = "recipe.yaml"
LOCK = ".lock"


def holds_run(folder: Path) -> bool:
    """Whether anything in `folder` would be lost to a new run: a folder without checkpoint or model is free."""
    return (folder / "checkpoints").exists() or (folder / "model").exists()


@contextmanager
def locked_run_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Within, no other run can claim `folder`, which is made where it is missing.

    Raises UserError where another one has it, or where it holds a run that is not, or cannot be, resumed. A line on
    stderr says so where there is nothing to resume. A folder made here is gone again where nothing came into it.
    """
    is_new = not folder.exists()
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
        if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()
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
    """UserError where the last checkpoint in `folder` was made with other values of these keys of its identity."""
    checkpoints = Checkpoints(folder, keep=1, world=World())
    path = checkpoints.latest()
    if path is not None:
        record = TrainerState.parse(path, checkpoints.record(path))
        replace(record, identity={key: record.identity.get(key) for key in identity}).check(path, identity)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Put `recipe` into `folder`, whole or not at all: other processes may be reading the one before it."""
    write_text(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
