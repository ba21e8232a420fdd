"""The demo: train one small model on text, pictures and speech from scratch, measure it, write a page about it.

Place in the flow: everything, once, in order; `make demo` and `latentlm demo` call it.
    folder/recipe.yaml, train.jsonl, samples/, checkpoints/, model/   report.html, report.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .config import LatentLMRecipe, load_recipe
from .errors import UserError

RECIPE = "demo"
QUICK_MINUTES = 1.0
WHOLE_MINUTES = 20.0
"""What the demo may take from a fresh clone, set-up included."""
AROUND_MINUTES = 2.5
"""Of these, kept for encoding before the first step and for the judging after the last: 1.8 on the slowest machine."""
SETUP_MINUTES = 3.0
"""A set-up that takes longer (a slow network) does not shorten training any further."""


def run(
    folder: str | Path = "runs/demo",
    minutes: float | None = None,
    quick: bool = False,
    *,
    setup_seconds: float = 0.0,
    processes: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train and evaluate the demo into `folder`; returns the path of report.html.

    minutes: of training, instead of the recipe's or of what is left of WHOLE_MINUTES.
    quick: a minute of training and few samples, to see that it runs.
    setup_seconds: what installation took before, for the report. processes: default one a core or GPU, at most two.
    Raises UserError when `folder` already holds a run.
    """
    started = time.perf_counter()
    from .data.sources import documents
    from .evaluation.evaluate import evaluate
    from .evaluation.page import write_report
    from .evaluation.seen import Seen
    from .generation.pipeline import load
    from .training.distributed import default_processes
    from .training.folder import holds_run
    from .training.run import train

    folder = Path(folder)
    recipe = load_recipe(RECIPE)
    if holds_run(folder):
        raise UserError(f"{folder}: already holds a run; move it away, or choose another folder with --out")
    say("preparing the data (eSpeak NG speaks it once, then it is cached) …")
    for source in recipe.data.sources:
        for split in ("train", "held_out"):
            documents(source, split)
    ready = time.perf_counter()
    before = setup_seconds + ready - started
    minutes = minutes or (QUICK_MINUTES if quick else training_minutes(recipe, before))
    recipe = load_recipe(RECIPE, {"training.max_minutes": minutes})
    count = processes or default_processes()
    say(f"training on {count} process{'es' * (count > 1)}, {minutes:.1f} minutes; samples go to {folder / 'samples'} …")
    model = train(recipe, folder, processes=count)
    trained = time.perf_counter()
    pipeline = load(model)
    report = evaluate(pipeline, seen=Seen.of(recipe), quick=quick, title="The demo's model", progress=say)
    report.add_seconds(
        setup=before,
        train=trained - ready,
        total=setup_seconds + time.perf_counter() - started,
    )
    write_report(report, folder, train_log=folder / "train.jsonl")
    return folder / "report.html"


def training_minutes(recipe: LatentLMRecipe, seconds_before: float) -> float:
    """The recipe's minutes, or fewer where more would take the whole past WHOLE_MINUTES."""
    left = WHOLE_MINUTES - AROUND_MINUTES - min(seconds_before / 60, SETUP_MINUTES)
    return min(recipe.training.max_minutes, left)
