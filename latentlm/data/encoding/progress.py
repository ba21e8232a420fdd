"""A progress bar with rate and time left, or lines where nobody watches a terminal.

Place in the flow: beside `parts.py`; the bar of training is in `training/logs.py`.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

PLAIN_SECONDS = 15.0
"""Seconds between plain lines where stderr is no terminal."""


class Progress:
    """`add(n)` moves on by n of `total`; a context manager. `done` of them were there before and do not count as speed.

    Written to stderr.
    """

    def __init__(self, what: str, unit: str, total: int, done: int = 0):
        self.what, self.unit, self.total, self.done = what, unit, total, done
        self._before = done
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar = _bar(what, unit, total, done) if sys.stderr.isatty() else None

    def add(self, number: int) -> None:
        self.done += number
        if self._bar:
            self._bar[0].update(self._bar[1], completed=self.done)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """`encoding: 1,024 of 50,000 documents, 910 a second, 54 s left`"""
        rate = self.rate()
        left = f", {(self.total - self.done) / rate:,.0f} s left" if rate else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f} a second{left}"

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
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    bar = Progress(
        TextColumn(what),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=60,
    )
    task = bar.add_task(what, total=total, completed=done)
    bar.start()
    return bar, task
