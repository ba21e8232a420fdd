"""Speech on the command line: reads the clips of voices, and writes speech into its file while it is made.

Place in the flow: on top, used by `generate.py`.
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
    """The clips of `--voice` arguments by speaker: `1=a.wav` gives the key "1", a path alone the key "".

    A path may contain "=" itself. Raises UserError for a second voice of one speaker, however its name is spelled,
    for a file that cannot be read, and for silence.
    """
    from ..data.speaker_labels import speaker_key, speaker_name
    from ..generation.prompts import read_voice

    found: dict[str, Audio] = {}
    keys: set[str] = set()
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or Path(item).is_file():
            name, path = "", item
        name = speaker_name(name)
        if speaker_key(name) in keys:
            whose = f"speaker {name} has a voice already" if name else "whose voice is it? write --voice 1=clip.wav"
            raise UserError(f"--voice {item}: {whose}")
        keys.add(speaker_key(name))
        found[name] = read_voice(path)
    return found


def speak(pipeline: Pipeline, request: Request, out: Path) -> None:
    """Write the speech of `request` to `out` while it is made; if it is interrupted, the file keeps what was made.

    Raises UserError if the model diverges, and if it ends before its first sound; then no file is written.
    """
    from ..generation.answers import DIVERGED
    from ..media.recording import Recording

    speech = pipeline.tokenizers.get("speech")
    latent = 1 / speech.rate if speech else 0.0  # seconds; `stream` refuses a model without speech
    limit = request.max_seconds if request.max_latents is None else request.max_latents * latent
    with Recording(out) as recording:
        try:
            with _bar(limit) as show:
                reason = _record(pipeline.stream(request), recording, show)
        except KeyboardInterrupt:
            say(f"stopped; {out} holds {recording.seconds:.1f} s" if recording.seconds else "stopped; nothing written")
            raise
    if reason == "diverged":
        kept = f"; {out} holds {recording.seconds:.1f} s" if recording.seconds else ""
        raise UserError(f"{DIVERGED}{kept}")
    if not recording.seconds:
        raise UserError(f"the speech ended before its first sound: nothing written to {out}; try another --seed")
    if reason == "length":
        option = "--max-seconds" if request.max_latents is None else "--max-latents"
        asked = limit is not None and recording.seconds > limit - latent
        cause = option if asked else "the model's limit"
        say(f"{out}: cut after {recording.seconds:.1f} s by {cause}, before the speech ended by itself")
    print(out)


def _record(pieces: Generator[Audio, None, str], recording: Recording, show: Callable[[float], None]) -> str:
    """Append all pieces to the recording; returns the finish reason."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            return end.value
        recording.append(piece)
        show(recording.seconds)


@contextmanager
def _bar(limit: float | None) -> Iterator[Callable[[float], None]]:
    """A progress bar in seconds of audio, up to `limit`; nothing if stderr is no terminal."""
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
    """Print a line on stderr."""
    print(f"latentlm: {message}", file=sys.stderr)
