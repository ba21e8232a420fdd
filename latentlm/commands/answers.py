"""The files that answers are written to, chosen and checked before the model is loaded, and how they are written.

Place in the flow: on top, the last part of `generate.py`; `speak.py` writes speech while it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.modalities import modalities, modality
from ..errors import UserError
from .speak import say

if TYPE_CHECKING:
    from ..generation.request import Request
    from ..types import GenerationOutput, Segment


USUAL_SUFFIXES = {"image": ".png", "speech": ".wav", "vectors": ".npy"}
"""Suffixes for the example in an error message; not from the registry of modalities, which imports torch."""


def check_out(out: Path | None, to: str, num: int) -> None:
    """Raise UserError for fewer than one answer, and for a missing --out; loads nothing."""
    if num < 1:
        raise UserError(f"--num must be at least 1, got {num}")
    if out is None and to == "auto":
        raise UserError("--to auto needs a folder to write: --out answer")
    if out is None and to != "text":
        raise UserError(f"--to {to} needs a file to write: --out answer{USUAL_SUFFIXES.get(to, '')}")


def places(out: Path | None, to: str, num: int) -> list[Path | None]:
    """The file of each of `num` answers: `out`, or several as apple-0.png, apple-1.png, …; None is the terminal.

    Raises UserError for a name whose suffix belongs to another kind of result, and for a folder that is not empty.
    """
    check_out(out, to, num)
    if out is None:
        return [None] * num
    _check_suffix(out, to)
    found = [out] if num == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(num)]
    for place in found if to == "auto" else ():
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise UserError(f"--out {place}: is there already; a result of --to auto is a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    return found


def _check_suffix(out: Path, to: str) -> None:
    suffix = out.suffix.lower()
    written = {each.name: each.written for each in modalities()}
    if to in written and suffix not in written[to]:
        raise UserError(f"--out {out}: a result of --to {to} ends in {', '.join(written[to])}")
    owner = next((each.name for each in modalities() if suffix in (*each.suffixes, *each.written)), None)
    if to == "auto" and (owner or suffix == ".txt"):
        raise UserError(f"--out {out}: a result of --to auto is a folder of files")
    if to == "text" and owner:
        raise UserError(f"--out {out}: {suffix} is for {owner}; a result of --to text goes into a text, as answer.txt")


def write(output: GenerationOutput, request: Request, out: Path | None) -> None:
    """Write one answer to `out`, or print it if it is text; prints a line on stderr if it is empty or was cut off.

    Raises UserError, and writes nothing, if the model diverged or if a medium has no content.
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
    if others:  # several spans of one modality: a model with stop_at "eos" goes on to the end of the document
        made = type(made)(joined([segment.content for segment in segments]))
    if out is None:
        print(made.text)
    else:
        _save(made, out)
        print(out)


def _write_all(segments: Sequence[Segment], folder: Path) -> None:
    """Write 0.txt, 1.png, 2.wav, … in the order of the answer; prints its text, with each medium as [image: FILE]."""
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
