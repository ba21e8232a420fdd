"""`latentlm evaluate`: any checkpoint, the same figures."""

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
    steps: int = 20,
    solver: str | None = None,
    quick: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    seed: int = 0,
    raw: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
) -> None:
    """Measure a model or a tokenizer on held-out data; every figure comes with its protocol and its reference.

    A model on the embedded sources that it was trained on, and on what its recipe holds out; a tokenizer by
    what it loses of the embedded media, or those of a manifest.

    Parameters
    ----------
    model
        Checkpoint folder, run folder (of a tokenizer too), hub id, or the packaged model "tiny".
    out
        File to write: .json for one flat object of figures, .html for a page with the samples.
    manifest
        Documents of your own that it was not trained on (JSONL), and nothing else; may be given several times.
    only
        Only this part, whatever it was trained on: digits, emoji, shapes, speech, text, reconstruction or documents;
        may be given several times.
    guidance
        A scale for all parts, or that of one as in digits=1.5; may be given several times. Digits 1, emoji 2, shapes 2,
        speech 1.5, documents the model's own unless given.
    steps
        Of the solver, a latent.
    solver
        dpm++2m, dpm++2m-logsnr, ddim, euler or heun. The model's own unless given.
    quick
        Fewer samples: to see that it runs.
    seed
        Of all noise.
    raw
        Take the weights as trained, not their average.
    device
        auto, cpu, cuda or cuda:N; auto is a GPU where torch sees one.
    dtype
        Of the model; auto is bf16 on a GPU that multiplies it, else fp32.
    """
    if out.suffix not in (".json", ".html"):
        raise UserError(f"--out {out}: a report ends in .json or .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder, write a file's name")
    if steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    if abs(seed) >= 10**12:
        raise UserError(f"--seed must have at most 12 digits, got {seed}")
    from ..evaluation.protocol import check_tasks

    check_tasks(only)
    scales = _scales(guidance)
    from ..checkpoint import kind_of, resolve
    from ..config.kinds import lookup
    from ..evaluation.folder import Wish
    from ..hardware import choose_device

    folder, place = resolve(model), choose_device(device)
    spec = kind_of(folder)
    if spec.evaluate is None:
        raise UserError(f"{folder}: nothing is measured of a {spec.kind}")
    wish = Wish(
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
    _write(lookup(spec.evaluate)(wish), out)


def _write(report: Report, out: Path) -> None:
    """The file, and every figure and remark on the terminal."""
    from ..evaluation.page import render_page
    from ..weights import write_text

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        report.save_json(out)
    else:
        write_text(out, render_page(report))
    for name, figure in sorted(report.figures.items()):
        print(f"{name:36} {figure.value:.4g}")
    for note in report.notes:
        print(note)
    print(out)


def _scales(items: Sequence[str]) -> dict[str, float]:
    """Guidance by task, the later over the earlier: "digits=1.5" is of one task, a bare number of all."""
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
