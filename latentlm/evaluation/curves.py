"""Loss curves and waveforms as inline SVG.

Place in the flow: train.jsonl or samples ──▶ SVG text ──▶ `page.py`. Colours come from the page's CSS variables, which
differ in light and dark mode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..media.sound import Audio

WIDTH, HEIGHT = 320, 150
LEFT, BOTTOM, TOP, RIGHT = 44, 22, 10, 8
MAX_POINTS = 400
NUM_BARS = 64


def read_losses(path: str | Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of every named loss in a train.jsonl and in a held_out.jsonl beside it.

    An incomplete last line, as a killed run leaves it, is skipped.
    """
    curves: dict[str, tuple[list[float], list[float]]] = {}
    held_out = Path(path).parent / "held_out.jsonl"
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    lines += held_out.read_bytes().split(b"\n")[:-1] if held_out.is_file() else []
    for line in lines:
        record = json.loads(line)
        for name, value in record["losses"].items():
            if math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(float(record["step"]))
                values.append(float(value))
    return curves


def loss_curve(name: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """A plot of one loss over steps: a faint line of the logged values, a bold line of their moving average.

    The scale is logarithmic where the values span more than a factor of 10.
    """
    x, y = np.asarray(steps), np.asarray(values)
    window = max(1, len(y) // 40)
    smooth = np.convolve(
        np.pad(y, (window // 2, window - 1 - window // 2), mode="edge"), np.ones(window) / window, "valid"
    )
    low, high = float(y.min()), float(y.max())
    logarithmic = low > 0 and high > 10 * low
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)

    def place(value: np.ndarray) -> np.ndarray:
        scaled = np.log(value) if logarithmic else value
        ends = (math.log(low), math.log(high)) if logarithmic else (low, high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (scaled - ends[0]) / max(ends[1] - ends[0], 1e-12))

    across = LEFT + (WIDTH - LEFT - RIGHT) * (x - x[0]) / max(x[-1] - x[0], 1e-12)
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int))
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">{tick:.3g}</text>'
        for tick in ticks
        for at in [float(place(np.array(tick)))]
    ]
    lines += [
        f'<polyline class="{kind}" points="{_points(across[keep], place(curve)[keep])}"/>'
        for kind, curve in (("raw", y), ("smooth", smooth))
    ]
    ends = (
        f'<text class="tick" x="{LEFT}" y="{HEIGHT - 6}">{x[0]:,.0f}</text>'
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">step {x[-1]:,.0f}</text>'
    )
    label = f"{escape(name)} loss from {smooth[0]:.3g} to {smooth[-1]:.3g}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(lines)}{ends}</svg>'


def waveform(audio: Audio) -> str:
    """A plot of the envelope of a clip, as bars."""
    samples = np.abs(audio.samples.detach().float().cpu().numpy())
    pieces = np.array_split(samples, NUM_BARS) if len(samples) else []
    peaks = np.array([piece.max(initial=0.0) for piece in pieces])
    peaks = peaks / max(float(peaks.max(initial=0.0)), 1e-4)
    bars = "".join(
        f'<rect x="{3 * place}" y="{16 - 15 * peak:.1f}" width="2" height="{max(30 * peak, 1):.1f}" rx="1"/>'
        for place, peak in enumerate(peaks)
    )
    return (
        f'<svg class="wave" viewBox="0 0 {3 * NUM_BARS} 32" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
    )


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _ticks(low: float, high: float) -> list[float]:
    """A few round values within [low, high]."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 2))
    for factor in (5, 2, 1):
        if (high - low) / (factor * step) >= 2:
            step *= factor
            break
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 3)]
    return [tick for tick in ticks if low <= tick <= high] or [low, high]
