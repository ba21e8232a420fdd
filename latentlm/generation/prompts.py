"""What a user passes as a prompt ──▶ the document that the model was trained to go on from.

Place in the flow: 4, in front of `pipeline.py`. Text, pictures, sound and documents are laid out as in training; speech
of a model whose config says `prompt: script` begins with a script (`data/script.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.modalities import as_segment, modalities, modality_names, modality_of_suffix
from ..data.script import Script, parse_script, read_script, read_text, script_prompt
from ..errors import UserError
from ..media.sound import Audio, check_voice, load_audio
from ..modalities.speech import Speech
from ..types import Document, Segment, Text

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image as PILImage

    Prompt = str | os.PathLike | PILImage | Audio | ndarray | Segment | Script | Document | Sequence
    """A text, a file by its path, a medium, a segment, a script, a document; a list of any but the last."""

    Clip = Audio | str | os.PathLike
    """A sound, or the path of its file."""


OTHERS = (".heic", ".heif", ".avif", ".jxl", ".svg", ".m4a", ".aac", ".opus", ".aiff", ".aif", ".wma", ".mp4", ".mov")
"""Suffixes that nobody means as words, though no such file is read."""


def make_prompt(
    prompt: Prompt,
    to: str,
    layout: str,
    voice: Clip | None = None,
    voices: Mapping[int | str, Clip] | None = None,
) -> Document:
    """The prompt of a model whose config says `prompt: layout`; clips are given as `voice` or, by speaker, as `voices`.

    Raises UserError for an empty prompt, for a script or voices that the model cannot read, for a voice of nobody, and
    for a file that cannot be read.
    """
    if voice is not None and voices:
        raise UserError("give voice (a clip) or voices (a clip of each speaker), not both")
    if voices is not None and not isinstance(voices, Mapping):
        raise UserError(f"voices is a dict from speakers to clips, not {type(voices).__name__}")
    voice = None if voice is None else _read_clip(voice)
    voices = {name: _read_clip(clip) for name, clip in (voices or {}).items()}
    if isinstance(prompt, Document):
        if voices:
            raise UserError("voices belong to a script; a document holds its sound itself")
        return as_prompt(prompt, voice)
    prompt = _parts(prompt, to)
    if layout == "script" and to == "speech":
        script = as_script(prompt)
        return script_prompt(script, _clips(script, voice, voices))
    if voices:
        script = as_script(prompt)
        _one_speaker(script)
        (voice,) = _clips(script, None, voices).values()
    return as_prompt(prompt, voice)


def as_prompt(prompt: Prompt, voice: Audio | None = None) -> Document:
    """Anything a user may pass as a prompt, as a Document of condition segments."""
    parts = prompt.segments if isinstance(prompt, Document) else _parts(prompt)
    segments = [_as_segment(part) for part in parts]
    if voice is not None:
        segments.insert(0, Speech(voice))
    if all(isinstance(s, Text) and not s.text.strip() for s in segments):
        raise UserError("the prompt is empty")
    return Document(tuple(replace(segment, condition=True, loss=False) for segment in segments))


def _parts(prompt: Prompt, to: str = "text") -> list:
    """What a prompt is made of, in order; files are read. A single thing is a list of one."""
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
    parts = list(prompt) if listed else [prompt]
    return [read_file(part, to) if isinstance(part, os.PathLike) else part for part in parts]


def _read_clip(clip: Clip) -> Audio:
    if isinstance(clip, str | os.PathLike):
        return check_voice(load_audio(clip))
    if not isinstance(clip, Audio):
        raise UserError(f"a voice is an Audio or the path of a sound file, not {type(clip).__name__}")
    return check_voice(clip)


def as_script(prompt: Prompt) -> Script:
    """A script as it is, or parsed from text; the texts of a list are its lines."""
    parts = _parts(prompt, "speech")
    if len(parts) == 1 and isinstance(parts[0], Script):
        return parts[0]
    for part in parts:
        if not isinstance(part, str):
            raise UserError(f"a script is text, not {type(part).__name__}; voices are given beside it")
    return parse_script("\n".join(parts))


def _clips(script: Script, voice: Audio | None, voices: Mapping[int | str, Audio]) -> dict[str, Audio]:
    """Clips by speaker; a single `voice` is that of the only one."""
    if voice is None:
        return script.cast(voices)
    if len(script.speakers) > 1:
        raise UserError(f"one voice, but speakers {', '.join(script.speakers)}; say whose it is, as in 1=clip.wav")
    return dict.fromkeys(script.speakers, voice)


def _one_speaker(script: Script) -> None:
    if len(script.speakers) > 1:
        raise UserError(
            f"the script has speakers {', '.join(script.speakers)}; this model reads a text and one voice "
            "(its config says prompt: document, scripts need prompt: script)"
        )


def _as_segment(part) -> Segment:
    if isinstance(part, Segment):
        return part
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Script):
        _one_speaker(part)
        return Text(part.text)
    segment = as_segment(part)
    if segment is None:
        kinds = ", ".join(modality_names())
        raise UserError(
            f"a prompt is made of text, files (pathlib.Path) and media ({kinds}), not {type(part).__name__}"
        )
    return segment


# ------------------------------------------------------------------ files


def read_file(path: str | os.PathLike, to: str) -> Any:
    """A medium or a text (.txt) as part of a prompt; a text to be spoken (`to` "speech") is a script.

    The line ends at a text's end, which editors write, are no part of it. Raises UserError, one line that names the
    file, for one that is missing, broken or of another kind.
    """
    suffix = Path(path).suffix.lower()
    found = modality_of_suffix(suffix)
    if found is not None:
        return found.load(path)
    if suffix == ".txt":
        return read_script(path) if to == "speech" else read_text(path).rstrip("\n")
    if suffix:
        raise UserError(f"{path}: files of this kind are not read, only {', '.join(readable())}")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file")
    raise UserError(f"{path}: its kind is unknown, the name has no extension (read are {', '.join(readable())})")


def readable() -> list[str]:
    """The suffixes of the files that may be part of a prompt."""
    return [suffix for each in modalities() for suffix in each.suffixes] + [".txt"]


def means_file(word: str) -> bool:
    """Whether a word of the command line is a file's name: what ends like one, or is there."""
    suffix = Path(word).suffix.lower()
    return suffix in readable() or (suffix in OTHERS and " " not in word) or os.path.isfile(word)
