"""`latentlm evaluate`: any checkpoint, the same figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def evaluate(
    model: str,
    /,
    *,
    out: Path,
    quick: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    seed: int = 0,
    raw: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> None:
    """Measure a model on the embedded data; every figure comes with its protocol and its reference.

    Parameters
    ----------
    model
        Checkpoint folder, run folder, hub id, or the packaged model "tiny".
    out
        File to write: .json for one flat object of figures, .html for a page with the samples.
    quick
        Fewer samples: to see that it runs.
    seed
        Of all noise.
    raw
        Take the weights as trained, not their average.
    """
    if out.suffix not in (".json", ".html"):
        raise ValueError(f"--out {out}: a report ends in .json or .html")
    from .. import load
    from ..config import parse_recipe
    from ..demo import trained_on
    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.page import render_page
    from ..evaluation.report import write_text
    from ..generation.pretrained import read_metadata

    out.parent.mkdir(parents=True, exist_ok=True)
    weights = "raw" if raw else "ema"
    pipeline, trained = load(model, weights=weights), read_metadata(model).get("recipe")
    known = trained_on(parse_recipe(trained, f"{model}: recipe")) if trained else {}
    report = run(pipeline, seed=seed, weights=weights, **known, title=model, quick=quick, progress=_say)
    if out.suffix == ".json":
        report.save_json(out)
    else:
        write_text(out, render_page(report))
    for name, figure in sorted(report.figures.items()):
        print(f"{name:36} {figure.value:.4g}")
    print(out)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
