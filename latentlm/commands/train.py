"""`latentlm demo` and `latentlm train`: train a model from a recipe."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..errors import UserError, notice


def demo(
    *,
    out: Path = Path("runs/demo"),
    minutes: float | None = None,
    quick: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    threads: int | None = None,
    setup_seconds: Annotated[float, Parameter(show=False)] = 0.0,
) -> None:
    """Train one small model on text, pictures and speech, evaluate it, and write a report.

    Parameters
    ----------
    out
        Folder for the model, report.html and report.json.
    minutes
        Minutes of training, instead of the recipe's.
    quick
        Train for a minute and evaluate few samples, to check that everything runs.
    threads
        CPU threads per process; default: all cores, shared by the processes.
    setup_seconds
        Seconds that the installation took, for the report.
    """
    from ..demo import run

    if minutes is not None and minutes <= 0:
        raise UserError(f"--minutes must be above 0, got {minutes}")
    _check_threads(threads)
    with _one_line():
        page = run(out, minutes, quick, setup_seconds=setup_seconds, threads=threads)
    print(f"open {page}")
    if sys.stdout.isatty():
        webbrowser.open(page.resolve().as_uri())


def train(
    recipe: str,
    /,
    *,
    overrides: Annotated[tuple[str, ...], Parameter("--set", negative=(), show_default=False)] = (),
    out: Path | None = None,
    processes: int = 1,
    resume: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    threads: int | None = None,
    dry_run: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Train a model or a tokenizer from a recipe.

    Parameters
    ----------
    recipe
        Name of a packaged recipe, path of a YAML file, or folder of a run.
    overrides
        KEY=VALUE sets one key of the recipe, for instance data.sources.0.weight=2; the value is YAML. May be repeated.
    out
        Folder of the run; default: runs/NAME of the recipe, or the run whose folder is given.
    processes
        Processes on this machine; 1 under torchrun.
    resume
        Continue from the last checkpoint in the folder.
    threads
        CPU threads per process, instead of the recipe's training.threads; default: the free cores.
    dry_run
        Print what would be trained: parameters, data, tokens and FLOPs per step, memory. Writes nothing.
    """
    from ..config import load_recipe, recipe_names

    if recipe in recipe_names() and (Path(recipe) / "recipe.yaml").is_file():
        notice(f"{recipe!r} is the packaged recipe; write ./{recipe} for the run in the folder {recipe} that is here")
    if processes < 1:
        raise UserError(f"--processes must be at least 1, got {processes}")
    is_run = recipe not in recipe_names() and (Path(recipe) / "recipe.yaml").is_file()
    named = Path(recipe) / "recipe.yaml" if is_run else recipe
    changes = dict(_override(item) for item in overrides)
    _check_threads(threads)
    if threads is not None:
        changes["training.threads"] = threads
    loaded = load_recipe(named, changes)
    from ..training.run import preview
    from ..training.run import train as run

    if dry_run:
        print("\n".join(preview(loaded)))
        return
    with _one_line():
        target = Path(recipe) if is_run else Path("runs") / Path(recipe).stem
        run(loaded, out or target, processes=processes, resume=resume)


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, got {threads}")


@contextmanager
def _one_line() -> Iterator[None]:
    """Context manager: turns a run that stops with a message into a UserError, and ProcessFailed into an exit code."""
    from ..training.checkpoint import CheckpointError
    from ..training.run import ProcessFailed
    from ..training.trainer import NonFiniteLoss

    try:
        yield
    except ProcessFailed as error:
        sys.exit(error.code)
    except (CheckpointError, NonFiniteLoss) as error:
        raise UserError(str(error)) from None


def _override(item: str) -> tuple[str, Any]:
    """Split KEY=VALUE; the value is parsed as YAML."""
    import yaml

    key, equals, value = item.partition("=")
    if not equals or not key:
        raise UserError(f"--set {item!r}: write KEY=VALUE, as in --set training.steps=500")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {item!r}: the value is not YAML") from None
