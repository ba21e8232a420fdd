"""Plots the results of `claims.py`: `c_sigma.png` and `guidance.png` beside its JSON, and tables in Markdown.

Every point is the mean over seeds with its standard error; the protocol stands below the panels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

SHOWN_GUIDANCES = (1.0, 1.5)
SHOWN_C_SIGMAS = (0.1, 0.3)
TARGETS = {"sample": "z learnt", "mean": "μ learnt"}
NUM_CLASSES = 10
QUANTITIES = {
    "frechet_ratio": "Fréchet distance ÷ real against real",
    "accuracy": "prompted digit right",
}
RECONSTRUCTION = {
    "mean_mse": "MSE × 1000, from μ",
    "sample_mse": "MSE × 1000, from z",
    "mean_accuracy": "judged right, from μ",
    "sample_accuracy": "judged right, from z",
}


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds and its standard error, stdev / √n; None for a single seed."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.error:.3f}" if self.error is not None else "")


@dataclass(frozen=True)
class Line:
    """The line of one setting: x of its points, and its estimates by quantity."""

    places: Sequence[float]
    curves: dict[str, list[Estimate]]


def estimate(values: Sequence[float]) -> Estimate:
    return Estimate(mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)


def drawn(record: dict, c_sigma: float, scale: float, name: str) -> Estimate:
    return estimate([e["guidance"][f"{scale:g}"][name] for e in record["runs"] if e["c_sigma"] == c_sigma])


def rebuilt(record: dict, c_sigma: float, name: str) -> Estimate:
    """A figure of the reconstruction over seeds; mean squared errors are multiplied by 1000."""
    scale = 1000 if name.endswith("_mse") else 1
    return estimate([scale * e["reconstruction"][name] for e in record["runs"] if e["c_sigma"] == c_sigma])


def plot(sources: Sequence[Path]) -> None:
    """Write the two plots beside the first of `sources`, one line per study and setting; print the tables of each."""
    records = [json.loads(source.read_text()) for source in sources]
    folder = sources[0].parent
    by_scale, by_c_sigma = {}, {}
    for record in records:
        found, scales = c_sigmas(record), record["settings"]["guidances"]
        target = f", {TARGETS[record['settings']['model']['model']['diffusion']['target']]}" if len(records) > 1 else ""
        for scale in SHOWN_GUIDANCES:
            curves = {name: [drawn(record, c, scale, name) for c in found] for name in QUANTITIES}
            by_scale[f"guidance {scale:g}" + (" (off)" if scale == 1 else "") + target] = Line(found, curves)
        for c in (c for c in SHOWN_C_SIGMAS if c in found):
            curves = {name: [drawn(record, c, scale, name) for scale in scales] for name in QUANTITIES}
            by_c_sigma[f"C_σ = {c:g}{target}"] = Line(scales, curves)
    along = "C_σ, relative to std(μ)   (0: no noise, an autoencoder)"
    _figure(folder / "c_sigma.png", along, by_scale, records[0])
    if by_c_sigma:
        _figure(folder / "guidance.png", "guidance scale   (1: off)", by_c_sigma, records[0])
    for source, record in zip(sources, records, strict=True):
        print(f"\n## {source.name}\n{tables(record, c_sigmas(record))}")


def c_sigmas(record: dict) -> list[float]:
    return sorted({entry["c_sigma"] for entry in record["runs"]})


def _figure(path: Path, along: str, lines: dict[str, Line], record: dict) -> None:
    """Write a plot: one panel per quantity, one line per setting, error bars over seeds, the protocol below."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    real = {"frechet_ratio": 1.0, "accuracy": record["settings"]["judge_accuracy_on_real"]}
    figure, panels = plt.subplots(1, len(QUANTITIES), figsize=(10, 5))
    for panel, (name, title) in zip(panels, QUANTITIES.items(), strict=True):
        for label, line in lines.items():
            heights = [estimate.mean for estimate in line.curves[name]]
            errors = [estimate.error or 0.0 for estimate in line.curves[name]]
            panel.errorbar(line.places, heights, errors, marker="o", capsize=4, label=label)
        panel.axhline(real[name], color="grey", linestyle=":", label="real digits")
        panel.set(xlabel=along, ylabel=title)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.text(0.02, 0.02, caption(record), fontsize=8, va="bottom")
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def caption(record: dict) -> str:
    settings = record["settings"]
    counts = [sum(e["c_sigma"] == c for e in record["runs"]) for c in {e["c_sigma"] for e in record["runs"]}]
    seeds = f"{min(counts)}" + (f" to {max(counts)}" if min(counts) < max(counts) else "")
    num, steps = settings["digits_per_class"] * NUM_CLASSES, settings["solver_steps"]
    tokenizer, model = (settings[name]["training"]["steps"] for name in ("tokenizer", "model"))
    return (
        f"Mean ± standard error over {seeds} seeds (tokenizer and model trained anew for each). 8×8 digits, 16 latents "
        f"of 8 channels; tokenizer {tokenizer} steps,\nLatentLM of 4 layers × 128, {model} steps, sampled z is the "
        f"input and, unless noted, learnt. {num} drawings per point, classes balanced,\nprompt: the word alone, "
        f"{steps} DPM-Solver++(2M) steps, EMA weights, fp32. Judge: the packaged CNN. Fréchet distance in its "
        f"features, mean of\n{settings['frechet_draws']} draws of {num} against {num} real, divided by that of "
        f"disjoint halves of the real digits, same draws."
    )


def tables(record: dict, found: Sequence[float]) -> str:
    """Tables in Markdown: every C_σ × guidance, then the reconstructions."""
    scales = record["settings"]["guidances"]
    rows = []
    for name, title in QUANTITIES.items():
        rows += [f"\n{title}\n", _row(["C_σ", *(f"guidance {scale:g}" for scale in scales)]), _row(["---"] * 5)]
        rows += [_row([f"{c:g}", *(str(drawn(record, c, scale, name)) for scale in scales)]) for c in found]
    rows += ["\nreconstruction of held-out digits\n", _row(["C_σ", *RECONSTRUCTION.values()]), _row(["---"] * 5)]
    rows += [_row([f"{c:g}", *(str(rebuilt(record, c, name)) for name in RECONSTRUCTION)]) for c in found]
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
