"""The demo: trains one small model on text, pictures and speech from scratch, evaluates it, and writes a report.

Place in the flow: on top, called by `make demo` and `latentlm demo`.
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
"""Time limit of the demo from a fresh clone, installation included."""
AROUND_MINUTES = 2.5
"""Part of WHOLE_MINUTES for encoding before training and evaluation after it: 1.8 on the slowest machine so far."""
SETUP_MINUTES = 3.0
"""Installation time beyond this (a slow network) does not shorten training."""


def run(
    folder: str | Path = "runs/demo",
    minutes: float | None = None,
    quick: bool = False,
    *,
    setup_seconds: float = 0.0,
    processes: int | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train and evaluate the demo into `folder`; returns the path of report.html.

    minutes: of training; default: the recipe's, or what is left of WHOLE_MINUTES.
    quick: train for a minute and evaluate few samples, to check that it runs.
    setup_seconds: duration of the installation, for the report. processes: default: one per core or GPU, at most two.
    threads: CPU threads per process; default: the free cores.
    Raises UserError if `folder` already holds a run.
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
    recipe = load_recipe(RECIPE, {"training.max_minutes": minutes, "training.threads": threads})
    count = processes or default_processes()
    say(f"training on {count} process{'es' * (count > 1)}, {minutes:.1f} minutes; samples go to {folder / 'samples'} …")
    model = train(recipe, folder, processes=count)
    trained = time.perf_counter()
    pipeline = load(model, threads=threads)
    report = evaluate(pipeline, seen=Seen.of(recipe), quick=quick, title="The demo's model", progress=say)
    report.add_seconds(
        setup=before,
        train=trained - ready,
        total=setup_seconds + time.perf_counter() - started,
    )
    write_report(report, folder, train_log=folder / "train.jsonl")
    return folder / "report.html"


def training_minutes(recipe: LatentLMRecipe, seconds_before: float) -> float:
    """Minutes of training: the recipe's, or fewer, so that the demo stays within WHOLE_MINUTES."""
    left = WHOLE_MINUTES - AROUND_MINUTES - min(seconds_before / 60, SETUP_MINUTES)
    return min(recipe.training.max_minutes, left)
