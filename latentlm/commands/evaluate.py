"""`latentlm evaluate`: figures of a model or a tokenizer, as JSON or as a page."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ..config.base import did_you_mean
from ..errors import UserError

if TYPE_CHECKING:
    from ..evaluation.report import Report


def evaluate(
    model: str,
    /,
    *,
    out: Path,
    manifest: Annotated[tuple[Path, ...], Parameter(negative=(), show_default=False)] = (),
    only: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    guidance: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    steps: int | None = None,
    solver: str | None = None,
    quick: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    seed: int = 0,
    raw: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    threads: int | None = None,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
) -> None:
    """Measure a model or a tokenizer on held-out data.

    A model is measured on the embedded sources that it was trained on and on
    the documents that its recipe holds out: losses, answers, pictures of class
    words judged by a classifier trained on the spot, speech judged by a
    recogniser. A tokenizer is measured by its reconstruction of media. Each
    figure comes with its protocol and a reference.

    Parameters
    ----------
    model
        Checkpoint folder, run folder (of a tokenizer too), hub id, or the packaged model "tiny".
    out
        File to write: .json for one flat object of figures, .html for a page with samples.
    manifest
        JSONL file of your own documents that the model was not trained on; only these are measured. May be repeated.
    only
        Measure only this part, whether the model was trained on it or not: digits, emoji, shapes, speech, text,
        reconstruction or documents. May be repeated.
    guidance
        Guidance scale of all parts, or of one part as in digits=1.5; may be repeated.
        By default digits 1, emoji 2, shapes 2, speech 1.5, documents the model's own.
    steps
        Solver steps per latent, for models with a diffusion head; 20 by default.
    solver
        dpm++2m, dpm++2m-logsnr, ddim, euler or heun, for models with a diffusion head; the model's own by default.
    quick
        Take fewer samples, for a quick check; the figures are noisy.
    seed
        Seed of all noise.
    raw
        Use the weights as trained instead of their average.
    threads
        CPU threads; by default as many as there are free cores.
    device
        auto, cpu, cuda or cuda:N; auto is a GPU where torch sees one.
    dtype
        Precision of the model. auto is bf16 on a GPU with native bf16, else fp32.
    """
    if out.suffix not in (".json", ".html"):
        raise UserError(f"--out {out}: a report ends in .json or .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder, write a file's name")
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    if abs(seed) >= 10**12:
        raise UserError(f"--seed must have at most 12 digits, got {seed}")
    from ..evaluation.protocol import check_tasks

    check_tasks(only)
    scales = _scales(guidance)
    from ..checkpoint import kind_of, resolve
    from ..config.kinds import lookup
    from ..evaluation.folder import EvaluationRequest
    from ..hardware import choose_device, set_threads

    set_threads(threads)
    folder, place = resolve(model), choose_device(device)
    spec = kind_of(folder)
    if spec.evaluate is None:
        raise UserError(f"{folder}: there is no evaluation for a {spec.kind}")
    request = EvaluationRequest(
        name=model,
        folder=folder,
        device=place,
        manifests=manifest,
        only=only,
        guidance=scales,
        steps=steps,
        solver=solver,
        quick=quick,
        seed=seed,
        raw=raw,
        dtype=dtype,
        say=_say,
    )
    _write(lookup(spec.evaluate)(request), out)


def _write(report: Report, out: Path) -> None:
    """Write the report to `out`, and print its figures and notes."""
    from ..evaluation.formatting import line
    from ..evaluation.page import render_page
    from ..weights import write_text

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        report.save_json(out)
    else:
        write_text(out, render_page(report))
    for _, figure in sorted(report.figures.items()):
        print(line(figure))
    for note in report.notes:
        print(note)
    print(out)


def _scales(items: Sequence[str]) -> dict[str, float]:
    """Guidance scales by part: "digits=1.5" sets one, a bare number all; later items replace earlier ones."""
    from ..evaluation.protocol import GUIDANCE

    scales: dict[str, float] = {}
    for item in items:
        task, equals, value = item.rpartition("=")
        try:
            scale = float(value)
        except ValueError:
            scale = math.nan
        if not 0 <= scale < math.inf:
            raise UserError(f"--guidance {item}: write a number from 0 on, or TASK=NUMBER as in digits=1.5")
        if equals and task not in GUIDANCE:
            raise UserError(f"--guidance {item}: no task {task!r}{did_you_mean(task, GUIDANCE)}")
        scales |= {task: scale} if equals else dict.fromkeys(GUIDANCE, scale)
    return scales


def _say(line: str) -> None:
    print(line, file=sys.stderr)
