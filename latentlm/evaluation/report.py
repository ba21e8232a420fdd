"""The result of an evaluation: figures with their protocol, and the pictures, sounds and texts behind them.

Place in the flow: after generation; every scorer adds to a `Report`, `page.py` turns it into one HTML file.
Each figure carries the value that real data (or chance) reaches in the same procedure, the bound where the project sets
one, and the protocol: samples, reference set, guidance, steps, weights, dtype, seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..media.sound import Audio
from ..weights import write_text

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

REQUIRED: dict[str, tuple[str, float]] = {
    "digits.prompt_accuracy": (">=", 0.97),
    "digits.frechet_ratio": ("<=", 1.5),
    "digits.caption_accuracy": (">=", 0.96),
    "digits.judge_accuracy": (">=", 0.985),
    "emoji.top1": (">=", 0.95),
    "speech.word_ratio": (">=", 0.9),
    "speech.transcribe_accuracy": (">=", 0.95),
    "speech.stop_rate": (">=", 0.98),
    "seconds.setup": ("<=", 180.0),
    "seconds.total": ("<=", 1200.0),
}
"""Bounds that the project sets for the demo, by figure."""

Z95 = 1.96
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Figure:
    """One number. `reference` is the value that `reference_name` reaches in the same procedure.

    required: (">=" or "<=", bound), where the project sets one.
    interval: half the width of the 95 % interval; standard_error: of a mean over documents. None where not estimated.
    """

    name: str
    value: float
    protocol: str
    reference: float | None = None
    reference_name: str = ""
    required: tuple[str, float] | None = None
    interval: float | None = None
    standard_error: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the requirement holds; None where there is none. NaN does not pass."""
        if self.required is None:
            return None
        sign, bound = self.required
        return self.value >= bound if sign == ">=" else self.value <= bound


@dataclass(frozen=True)
class Exhibit:
    """One sample of a gallery: `title` is the prompt, `text` the answer in words, `mark` whether it is right.

    picture / sound: generated, or the input that was read; reference: the real picture, shown beside it.
    """

    title: str
    text: str = ""
    mark: bool | None = None
    picture: PILImage | None = None
    reference: PILImage | None = None
    sound: Audio | None = None


@dataclass(frozen=True)
class Gallery:
    """A section of the page: exhibits under a heading. columns > 0: a grid of bare pictures with that many columns."""

    name: str
    title: str
    note: str
    exhibits: tuple[Exhibit, ...]
    columns: int = 0


@dataclass
class Report:
    """Figures by name, galleries in order, and notes for the reader. A figure replaces an earlier one of its name."""

    title: str = "LatentLM"
    subtitle: str = "One causal Transformer that writes, draws and speaks."
    figures: dict[str, Figure] = field(default_factory=dict)
    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        name: str,
        value: float,
        protocol: str,
        *,
        reference: float | None = None,
        reference_name: str = "",
        required: tuple[str, float] | None = None,
        interval: float | None = None,
        standard_error: float | None = None,
    ) -> None:
        """Record a figure; its requirement is looked up in `REQUIRED` unless given. The interval of a standard error
        is 1.96 times that."""
        required = required or REQUIRED.get(name)
        if standard_error is not None:
            interval = Z95 * standard_error
        self.figures[name] = Figure(
            name, float(value), protocol, reference, reference_name, required, interval, standard_error
        )

    def leave_out(self, name: str, reason: str) -> None:
        """Record why a figure, or the part of the evaluation called `name`, was not measured; also as a note."""
        self.left_out[name] = f"not measured, {reason}"
        self.notes.append(f"{name}: not measured, {reason}.")

    def add_seconds(self, **seconds: float) -> None:
        """Wall-clock times, e.g. setup=…, train=…, total=…, as figures "seconds.<name>"."""
        for name, value in seconds.items():
            self.add(f"seconds.{name}", value, "wall clock of this run")

    @property
    def passed(self) -> bool:
        """Whether every figure that has a requirement meets it."""
        return all(figure.passed is not False for figure in self.figures.values())

    def to_dict(self) -> dict[str, float | str]:
        """One flat object: the finite values by name, then "interval.NAME" (half the width of the 95 % interval),
        "standard_error.NAME", "reference.NAME", "reference_name.NAME", "required.NAME" and "protocol.NAME".

        A key without a value is absent. "protocol.NAME" of what was left out is the reason.
        """
        flat: dict[str, float | str] = {}
        details: dict[str, float | str] = {f"protocol.{name}": why for name, why in self.left_out.items()}
        for name, figure in sorted(self.figures.items()):
            numbers = {
                f"interval.{name}": figure.interval,
                f"standard_error.{name}": figure.standard_error,
                f"reference.{name}": figure.reference,
                f"required.{name}": figure.required[1] if figure.required is not None else None,
            }
            if math.isfinite(figure.value):
                flat[name] = figure.value
            details |= {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
            if figure.reference is not None:
                details[f"reference_name.{name}"] = figure.reference_name
            finite = math.isfinite(figure.value)
            details[f"protocol.{name}"] = (
                figure.protocol if finite else f"the value is {figure.value}; {figure.protocol}"
            )
        return flat | details

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict()` atomically. OSError for a path that cannot be written."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")


def read_report(path: str | Path) -> Mapping[str, float | str]:
    """The object of a report.json, as `Report.to_dict` makes it."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def interval(accuracy: float, num: int) -> float:
    """Half the width of the 95 % Wilson interval of a rate over `num` trials."""
    spread = accuracy * (1 - accuracy) / num + Z95**2 / (4 * num**2)
    return Z95 * math.sqrt(spread) / (1 + Z95**2 / num)
