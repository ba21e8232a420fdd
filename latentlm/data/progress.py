"""A progress bar with rate and time left on a terminal; elsewhere a line now and then. Both on stderr.

Place in the flow: 2, below all that reads or encodes many media; the bar of training is in `training/logs.py`.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

FIRST_SECONDS, PLAIN_SECONDS = 1.0, 15.0
"""Seconds to the first plain line, and between later ones, where stderr is no terminal."""


class Progress:
    """Context manager that shows the progress; `add(n)` counts n more of `total` as done.

    done: how many were done before; they do not count for the speed. quiet: shows nothing.
    """

    def __init__(self, what: str, unit: str, total: int, done: int = 0, *, quiet: bool = False):
        self.what, self.unit, self.total, self.done = what, unit, total, done
        self._before = done
        self._started = time.monotonic()
        self._next_line = self._started + FIRST_SECONDS
        self._plain = not quiet and not sys.stderr.isatty()
        self._bar = None if quiet or self._plain or not total else _bar(what, unit, total, done)

    def add(self, number: int) -> None:
        self.done += number
        if self._bar:
            self._bar[0].update(self._bar[1], completed=self.done)
        elif self._plain and (now := time.monotonic()) >= self._next_line:
            self._next_line = now + PLAIN_SECONDS
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The progress as text, such as `encoding: 1,024 of 50,000 documents, 910 per second, 54 s left`."""
        rate = self.rate()
        left = f", {(self.total - self.done) / rate:,.0f} s left" if rate else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {_number(rate)} per second{left}"

    def rate(self) -> float:
        """Per second, since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar[0].stop()


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _bar(what: str, unit: str, total: int, done: int):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{_number(task.speed or 0)} {unit}/s")

    bar = Progress(
        TextColumn(what),
        BarColumn(bar_width=16),  # with counts, rate and time left within 80 columns
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=60,
    )
    task = bar.add_task(what, total=total, completed=done)
    bar.start()
    return bar, task
