"""Where answers go: files that are fit for them and known before anything is loaded, or the terminal.

Place in the flow: on top, the last part of `generate.py`; `speak.py` writes speech, as it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.modalities import modalities, modality
from ..errors import UserError
from .speak import say

if TYPE_CHECKING:
    from ..generation.request import Request
    from ..types import GenerationOutput, Segment


def places(out: Path | None, to: str, num: int) -> list[Path | None]:
    """Where each of `num` answers goes: `out`, or for more than one apple-0.png, apple-1.png, …; None is the terminal.

    Raises UserError where a result does not fit there, and for a folder that holds something.
    """
    written = {each.name: each.written for each in modalities()}
    if num < 1:
        raise UserError(f"--num must be at least 1, got {num}")
    if out is None and to == "auto":
        raise UserError("--to auto needs a folder to write: --out answer")
    if out is None and to in written:
        raise UserError(f"--to {to} needs a file to write: --out answer{written[to][0]}")
    if out is None:
        return [None] * num
    if to in written and out.suffix.lower() not in written[to]:
        raise UserError(f"--out {out}: a result of --to {to} ends in {', '.join(written[to])}")
    if to == "auto" and out.suffix.lower() in (".txt", *chain.from_iterable(written.values())):
        raise UserError(f"--out {out}: a result of --to auto is a folder of files")
    found = [out] if num == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(num)]
    for place in found if to == "auto" else ():
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise UserError(f"--out {place}: is there already; a result of --to auto is a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    return found


def write(output: GenerationOutput, request: Request, out: Path | None) -> None:
    """One answer into `out`, or a text to the terminal; what a user should know of how it ended goes to stderr.

    Raises UserError, with nothing written, where the model diverged, and for a medium of which there is nothing.
    """
    from ..generation.answers import check_finite

    check_finite(output.finish_reason)
    is_empty = all(map(_is_empty, output.segments))
    if request.to == "auto":
        _write_all(output.segments, out)
    else:
        if is_empty and request.to != "text":
            raise UserError(f"the model ended at once: nothing written to {out}; try another --seed")
        _write_one(output.segments, out)
    if is_empty:
        say("the model ended at once: its answer is empty")
    if output.finish_reason == "length":
        say(_how_it_was_cut(output, request))


def _is_empty(segment: Segment) -> bool:
    if segment.modality == "text":
        return not segment.text
    found = modality(segment.modality)
    return found.ends_itself and not found.length(segment.content)


def _how_it_was_cut(output: GenerationOutput, request: Request) -> str:
    from ..generation.request import USUAL_LIMIT

    to, num = request.to, output.num_steps
    if to == "auto":
        limits = "a limit (--max-tokens, --max-seconds, --max-latents, the model's context)"
        return f"cut after {num} tokens and latents by {limits}, before the model ended by itself"
    units, option, limit = "tokens", "--max-tokens", request.max_tokens
    if to != "text":
        units, option, limit = "latents", "--max-latents", request.max_latents or USUAL_LIMIT
    cause = option if num >= limit else "the end of the model's context"
    return f"cut after {num} {units} by {cause}, before the model ended the {to}"


def _write_one(segments: Sequence[Segment], out: Path | None) -> None:
    from ..generation.answers import joined

    made, *others = segments
    if others:  # several spans of one modality, where an answer goes on until the end of the document
        made = type(made)(joined([segment.content for segment in segments]))
    if out is None:
        print(made.text)
    else:
        _save(made, out)
        print(out)


def _write_all(segments: Sequence[Segment], folder: Path) -> None:
    """0.txt, 1.png, 2.wav, … in the order of the answer; the terminal gets its text, and the files in their places."""
    shown = []
    for number, segment in enumerate(segments):
        folder.mkdir(exist_ok=True)
        name = segment.modality
        path = folder / f"{number}{'.txt' if name == 'text' else modality(name).written[0]}"
        _save(segment, path)
        shown.append(segment.text if name == "text" else f"[{name}: {path}]")
    print("".join(shown))


def _save(made: Segment, path: Path) -> None:
    from ..weights import write_text

    if made.modality == "text":
        write_text(path, made.text + "\n")
    else:
        modality(made.modality).save(made.content, path)
