"""The log of a run: `train.jsonl`, `held_out.jsonl`, TensorBoard if installed, and a progress bar or lines on stderr.

Place in the flow: 5, the trainer writes losses every `log_every` steps and figures of samples and held-out data every
`sample_every` steps; the log is enabled on rank 0 only. A resumed run first drops the lines after its checkpoint, so
that every step is in a file once.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..weights import attach_path_to_oserror, write_text
from .state import LogWindow, RunProgress

HELD_OUT = "held_out.jsonl"
PLAIN_SECONDS = 15.0
"""Seconds between plain progress lines where stderr is no terminal."""


class TrainLog:
    """The log of one run; a context manager. With `enabled` False nothing is written.

    The run starts after `first_step` and `first_seconds`, and ends at `steps` or after `minutes`, whichever is sooner.
    `unit`: tokens or examples, which the records count. Raises UserError if TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        steps: int,
        first_seconds: float = 0.0,
        minutes: float | None = None,
        unit: str = "tokens",
        enabled: bool = True,
        tensorboard: bool = False,
    ):
        self.enabled, self.unit = enabled, unit
        self.steps, self.minutes = steps, minutes
        self.path, self.figures_path = folder / "train.jsonl", folder / HELD_OUT
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise UserError("tensorboard is not installed: pip install tensorboard")
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        truncate(self.path, first_step)
        truncate(self.figures_path, first_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 closed in __exit__
        self._board = _board(folder / "tensorboard", first_step) if tensorboard else None
        self._bar = _bar(*self._place(first_step, first_seconds)) if sys.stderr.isatty() else None
        self._last_line = 0.0

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self.enabled:
            return
        if self._bar:
            self._bar[0].stop()
        if self._board:
            self._board.close()
        with attach_path_to_oserror(self.path):
            self._file.close()

    def write(self, record: Mapping[str, Any], last: bool = False) -> None:
        """Write and show a record: step, loss, losses by name, learning_rate, gradient_norm, {unit}_per_second, …

        Raises OSError, which names the file, if it cannot be written.
        """
        if not self.enabled:
            return
        with attach_path_to_oserror(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._board:
            for name, value in _flat(record):
                self._board.add_scalar(name, value, record["step"])
        self._show(record, last)

    def write_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Write and show the figures of samples and held-out data at `step`, by name; without figures do nothing.

        Raises OSError, which names the file, if it cannot be written.
        """
        if not self.enabled or not figures:
            return
        with attach_path_to_oserror(self.figures_path), open(self.figures_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "losses": figures}) + "\n")
        if self._board:
            for name, value in figures.items():
                self._board.add_scalar(f"held_out/{name.replace(' ', '_')}", value, step)
        self.say(f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def show_samples(self, step: int, folder: Path) -> None:
        """Show the pictures, clips and texts of `step` in `folder`, as `samples.py` names them, in TensorBoard."""
        if not self.enabled or not self._board:
            return
        import soundfile
        from PIL import Image as PILImage

        for path in sorted(folder.glob(f"step-{step:08d}*")):
            name = "samples/" + (path.stem.removeprefix(f"step-{step:08d}").strip("-") or "answers")
            if path.suffix == ".png":
                with PILImage.open(path) as picture:
                    self._board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            elif path.suffix == ".wav":
                samples, sample_rate = soundfile.read(path, dtype="float32")
                self._board.add_audio(name, torch.from_numpy(samples)[None], step, sample_rate=sample_rate)
            elif path.suffix == ".json":
                self._board.add_text(name, f"```\n{path.read_text(encoding='utf-8')}```", step)

    def _show(self, record: Mapping[str, Any], last: bool) -> None:
        losses = "  ".join(f"{name} {value:.4g}" for name, value in record["losses"].items())
        speed = f"lr {record['learning_rate']:.1e}  {record[f'{self.unit}_per_second']:,.0f} {self.unit}/s"
        share, place = self._place(record["step"], record["seconds"])
        if self._bar:
            bar, task = self._bar
            bar.update(task, completed=share, place=place, speed=speed, losses=losses)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS or last:
            self._last_line = time.monotonic()
            print(f"{place}  {losses}  {speed}", file=sys.stderr, flush=True)

    def _place(self, step: int, seconds: float) -> tuple[float, str]:
        """The completed share of the schedule, by the clock or by steps, whichever is further, and its text."""
        by_step = step / self.steps
        by_clock = seconds / (60 * self.minutes) if self.minutes else 0.0
        if self.minutes and by_clock >= by_step:
            return by_clock, f"step {step} ({seconds / 60:.1f} of {self.minutes:.1f} min)"
        return by_step, f"step {step}/{self.steps}"

    def say(self, text: str) -> None:
        """Print a line to stderr, above the progress bar."""
        if not self.enabled:
            return
        if self._bar:
            self._bar[0].console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def log_record(
    progress: RunProgress, window: LogWindow, weights: Mapping[str, float], rates: Mapping[str, float], unit: str
) -> dict[str, Any]:
    """A record of the log: progress of the run, and means over `window`.

    weights: of the losses by name; default 1. rates: learning rates by phase, first that of the model; those of other
    phases, and their gradient norms, are logged with the phase's name. unit: tokens or examples.
    """
    losses = window.losses()
    main, *others = rates
    norms = {f"gradient_norm/{name}": value / window.norm_counts[name] for name, value in window.norms.items()}
    return {
        "step": progress.step,
        "loss": sum(weights.get(name, 1.0) * value for name, value in losses.items()),
        "losses": losses,
        "learning_rate": rates[main],
        "gradient_norm": window.gradient_norm / window.num_steps,
        unit: int(progress.tokens),
        f"{unit}_per_second": round(window.tokens / max(window.seconds, 1e-9), 1),
        "seconds": round(progress.seconds, 3),
        **{f"learning_rate/{name}": rates[name] for name in others},
        **norms,
    }


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `train.jsonl`; an incomplete last line, left by a kill, is dropped."""
    lines = Path(path).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, atomically."""
    if not path.is_file():
        return
    kept = [record for record in read_log(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _flat(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    scalars = [(name, value) for name, value in record.items() if name not in ("step", "losses")]
    return scalars + [(f"losses/{name}", value) for name, value in record["losses"].items()]


def _board(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step + 1)


def _bar(share: float, place: str) -> tuple[Any, Any]:
    """A started progress bar and its task: a line with bar, place, time left and speed, and below it the losses."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class BarAndLosses(Progress):
        def get_renderables(self):
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["losses"]) for task in self.tasks)

    whole = Column(no_wrap=True)
    bar = BarAndLosses(
        BarColumn(bar_width=None, table_column=Column(min_width=8, ratio=1)),
        TextColumn("{task.fields[place]}", table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        TextColumn("{task.fields[speed]}", table_column=whole),
        console=Console(stderr=True),
        speed_estimate_period=300,
        expand=True,
    )
    task = bar.add_task("train", total=1.0, completed=share, place=place, speed="", losses="")
    bar.start()
    return bar, task
