"""`latentlm demo` and `latentlm train`: recipes into models."""

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
    setup_seconds: Annotated[float, Parameter(show=False)] = 0.0,
) -> None:
    """Train one small model on text, pictures and speech, measure it, and write a page about it.

    Parameters
    ----------
    out
        Folder for the model, report.html and report.json.
    minutes
        Minutes of training, instead of the recipe's.
    quick
        A minute of training and few samples, to see that everything runs.
    setup_seconds
        What installation took before, for the report.
    """
    from ..demo import run

    if minutes is not None and minutes <= 0:
        raise UserError(f"--minutes must be above 0, got {minutes}")
    with _one_line():
        page = run(out, minutes, quick, setup_seconds=setup_seconds)
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
) -> None:
    """Train a model or a tokenizer as a recipe says.

    Parameters
    ----------
    recipe
        Name of a packaged recipe, path of a YAML file, or the folder of a run, whose recipe.yaml it is.
    overrides
        KEY=VALUE changes one key of the recipe, as data.sources.0.weight=2; the value is read as YAML. May be repeated.
    out
        Folder of the run; by default runs/ and the recipe's name, or the run itself that is named.
    processes
        Processes on this machine; under torchrun, leave it at 1.
    resume
        Go on from the last checkpoint in the folder.
    """
    from ..config import load_recipe, recipe_names

    if recipe in recipe_names() and (Path(recipe) / "recipe.yaml").is_file():
        notice(f"{recipe!r} is the packaged recipe; write ./{recipe} for the run in the folder {recipe} that is here")
    if processes < 1:
        raise UserError(f"--processes must be at least 1, got {processes}")
    is_run = recipe not in recipe_names() and (Path(recipe) / "recipe.yaml").is_file()
    named = Path(recipe) / "recipe.yaml" if is_run else recipe
    loaded = load_recipe(named, dict(_override(item) for item in overrides))
    from ..training.run import train as run

    with _one_line():
        target = Path(recipe) if is_run else Path("runs") / Path(recipe).stem
        folder = run(loaded, out or target, processes=processes, resume=resume)
    print(f"trained: {folder}")


@contextmanager
def _one_line() -> Iterator[None]:
    """A run that has to stop, with a message of its own, is no crash: its line is all that is shown."""
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
    """KEY=VALUE, the value as YAML."""
    import yaml

    key, equals, value = item.partition("=")
    if not equals or not key:
        raise UserError(f"--set {item!r}: write KEY=VALUE, as in --set training.steps=500")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {item!r}: the value is not YAML") from None
