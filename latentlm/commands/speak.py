"""Speech on the command line: voices by speaker in, a file that grows while the model speaks out.

Place in the flow: on top, the half of `generate.py` that deals with sound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from ..generation.pipeline import Pipeline
    from ..generation.request import Request
    from ..media.recording import Recording
    from ..media.sound import Audio


def clips_by_speaker(items: Sequence[str]) -> dict[str, Audio]:
    """`1=a.wav` as speaker and sound; a path alone, which may hold a = itself, as that of speaker "".

    Raises UserError for a second voice of one speaker, a file that cannot be read, and silence.
    """
    from ..media.sound import check_voice, load_audio

    found: dict[str, Audio] = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or Path(item).is_file():
            name, path = "", item
        if name in found:
            whose = f"speaker {name} has a voice already" if name else "whose voice is it? write --voice 1=clip.wav"
            raise UserError(f"--voice {item}: {whose}")
        found[name.strip()] = check_voice(load_audio(path))
    return found


def speak(pipeline: Pipeline, request: Request, out: Path, max_seconds: float | None) -> None:
    """Write the speech of `request` to `out` as it is made. What was made stays, whatever ends it.

    Raises UserError where the model diverges, and where it ends before its first sound; then there is no file.
    """
    from ..generation.answers import DIVERGED
    from ..media.recording import Recording

    with Recording(out) as recording:
        try:
            with _bar(max_seconds) as show:
                reason = _record(pipeline.stream(request), recording, show)
        except KeyboardInterrupt:
            say(f"stopped; {out} holds {recording.seconds:.1f} s" if recording.seconds else "stopped; nothing written")
            raise
    if reason == "diverged":
        said = f"; {out} holds {recording.seconds:.1f} s" if recording.seconds else ""
        raise UserError(f"{DIVERGED}{said}")
    if not recording.seconds:
        raise UserError(f"the speech ended before its first sound: nothing written to {out}; try another --seed")
    if reason == "length":
        latent = 1 / pipeline.tokenizers["speech"].rate
        asked = max_seconds is not None and recording.seconds > max_seconds - latent
        cause = "--max-seconds" if asked else "the longest that this model can say"
        say(f"{out}: cut after {recording.seconds:.1f} s by {cause}, before the speech ended by itself")
    print(out)


def _record(pieces: Generator[Audio, None, str], recording: Recording, show: Callable[[float], None]) -> str:
    """All pieces into the recording; returns the finish reason."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        recording.append(piece)
        show(recording.seconds)


@contextmanager
def _bar(limit: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar in seconds of audio on a terminal; its end is the limit, which speech need not reach."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda seconds: None
        return
    at_most = f" of at most {limit:.1f}" if limit else ""
    columns = (BarColumn(), TextColumn("{task.completed:.1f}" + at_most + " s of audio"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=limit)
        yield lambda seconds: progress.update(task, completed=seconds)


def say(message: str) -> None:
    """A line to the user, beside the result."""
    print(f"latentlm: {message}", file=sys.stderr)
