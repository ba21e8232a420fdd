"""What an evaluation found: figures with their protocol, and the pictures, sounds and texts behind them.

Place in the flow: after generation; every scorer adds to a `Report`, `page.py` turns it into one HTML file.
A figure never stands alone: beside it are the value that real data (or chance) reaches in the same procedure, the
threshold where the project states one, and the protocol: samples, reference set, guidance, steps, weights, dtype, seed.
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
"""What the project asks of the demo. Figures without an entry are shown as they are."""

NAMES = (
    "digits.prompt_accuracy",
    "digits.frechet_ratio",
    "digits.caption_accuracy",
    "emoji.top1",
    "speech.word_ratio",
    "speech.transcribe_accuracy",
    "speech.stop_rate",
    "text.bits_per_byte",
    "seconds.setup",
    "seconds.train",
    "seconds.total",
)
"""Every report.json has these names; one that was not measured is null, and its protocol says why."""


@dataclass(frozen=True)
class Figure:
    """One number. `reference` is what `reference_name` reaches in the same procedure.

    required: (">=" or "<=", bound), where something is asked for.
    error: half-width of a 95 % interval, where the procedure gives one.
    """

    name: str
    value: float
    protocol: str
    reference: float | None = None
    reference_name: str = ""
    required: tuple[str, float] | None = None
    error: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the requirement holds; None where there is none. A value that is not a number does not pass."""
        if self.required is None:
            return None
        sign, bound = self.required
        return self.value >= bound if sign == ">=" else self.value <= bound


@dataclass(frozen=True)
class Exhibit:
    """One thing the model made or read: `title` what was asked, `text` what came out in words, `mark` right or wrong.

    picture / sound: what was generated (or read); reference: the real one to hold beside it.
    """

    title: str
    text: str = ""
    mark: bool | None = None
    picture: PILImage | None = None
    reference: PILImage | None = None
    sound: Audio | None = None


@dataclass(frozen=True)
class Gallery:
    """A section of the page: exhibits under a heading. columns > 0: a dense grid of bare pictures, so many a row."""

    name: str
    title: str
    note: str
    exhibits: tuple[Exhibit, ...]
    columns: int = 0


@dataclass
class Report:
    """Figures by name, galleries in order, and remarks for the reader. Later figures of a name replace earlier ones."""

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
        error: float | None = None,
    ) -> None:
        """Record a figure; its requirement is looked up in `REQUIRED` unless given."""
        required = required or REQUIRED.get(name)
        self.figures[name] = Figure(name, float(value), protocol, reference, reference_name, required, error)

    def leave_out(self, name: str, reason: str) -> None:
        """Say why a figure, or all those whose names begin with `name`, was not measured: here and in the remarks."""
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

    def to_dict(self) -> dict[str, float | str | None]:
        """One flat object: the numbers under their names, then "reference.", "required." and "protocol." + name.

        The protocol of what was left out is the reason.
        """
        flat: dict[str, float | str | None] = {
            name: _finite(figure.value) for name, figure in sorted(self.figures.items())
        }
        protocols: dict[str, float | str | None] = {f"protocol.{name}": why for name, why in self.left_out.items()}
        for name in NAMES:
            if name not in self.figures:
                reasons = (why for start, why in self.left_out.items() if name.startswith(start))
                flat[name] = None
                protocols[f"protocol.{name}"] = next(reasons, "not measured in this evaluation")
        for name, figure in sorted(self.figures.items()):
            if figure.reference is not None:
                protocols[f"reference.{name}"] = _finite(figure.reference)
                protocols[f"reference_name.{name}"] = figure.reference_name
            if figure.required is not None:
                protocols[f"required.{name}"] = figure.required[1]
            protocols[f"protocol.{name}"] = figure.protocol
        return flat | protocols

    def save_json(self, path: str | Path) -> None:
        """Write the flat object, atomically. OSError names a path that cannot be written."""
        write_text(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")


def read_report(path: str | Path) -> Mapping[str, float | str | None]:
    """The flat object of a report.json."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def interval(accuracy: float, num: int) -> float:
    """Half-width of the 95 % Wilson interval of a rate over `num` trials."""
    z = 1.96
    spread = accuracy * (1 - accuracy) / num + z**2 / (4 * num**2)
    return z * math.sqrt(spread) / (1 + z**2 / num)


def _finite(value: float) -> float | None:
    """JSON has no NaN: a value that is not finite is null."""
    return value if math.isfinite(value) else None
