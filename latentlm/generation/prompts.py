"""Prompts: texts, files, media and scripts ──▶ the document that the model continues.

Place in the flow: 4, in front of `pipeline.py`. Text, pictures, sound and documents are laid out as in training. A text
to be spoken is read as a script (`data/script.py`), given as a string, a file or a `Script` alike. A model whose config
says `prompt: script` receives all turns, any other model the words of one speaker, without the labels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.modalities import as_segment, modalities, modality_names, modality_of_suffix
from ..data.script import Script, join_scripts, parse_script, read_script, read_text, script_prompt
from ..errors import UserError, notice
from ..media.sound import Audio, check_voice, load_audio
from ..modalities.speech import Speech
from ..types import Document, Segment, Text

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image as PILImage

    Prompt = str | os.PathLike | PILImage | Audio | ndarray | Segment | Script | Document | Sequence
    """A text, the path of a file, a medium, segment, script or document; or a list of any of these but documents."""

    Clip = Audio | str | os.PathLike
    """A sound, or the path of its file."""


OTHER_MEDIA = (
    *(".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".ico", ".m4a", ".aac", ".wma"),
    *(".amr", ".mid", ".mp4", ".mov", ".mkv", ".avi", ".webm", ".gz", ".zip", ".tar", ".7z"),
)
OTHER_DOCUMENTS = (
    *(".md", ".markdown", ".rst", ".tex", ".rtf", ".pdf", ".doc", ".docx", ".odt", ".epub", ".htm", ".html", ".xml"),
    *(".srt", ".vtt", ".ass", ".lrc", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".log", ".ipynb"),
    *(".parquet", ".npz", ".pt", ".pth", ".ckpt", ".bin"),
)
"""Suffixes of files that cannot be part of a prompt. A word that ends in one is still taken for the name of a file."""


def make_prompt(
    prompt: Prompt,
    to: str,
    layout: str,
    voice: Clip | None = None,
    voices: Mapping[int | str, Clip] | None = None,
) -> Document:
    """The document of a prompt, for a model whose config says `prompt: layout`.

    to: what will be generated, a modality, "text" or "auto". voice: a clip of the only speaker; voices: clips by
    speaker. A notice says which speakers a script of several lines has.
    Raises UserError for an empty prompt, for a script or voices that the model cannot read, for a voice whose
    speaker is not in the script, for two voices of one speaker, and for a file that cannot be read.
    """
    if voice is not None and voices:
        raise UserError("give voice (a clip) or voices (a clip of each speaker), not both")
    if voices is not None and not isinstance(voices, Mapping):
        raise UserError(f"voices is a dict from speakers to clips, not {type(voices).__name__}")
    voice = None if voice is None else read_voice(voice)
    voices = {name: read_voice(clip) for name, clip in (voices or {}).items()}
    if isinstance(prompt, Document):
        if voices:
            raise UserError("voices belong to a script; a Document has its clips as segments")
        return as_prompt(prompt, voice)
    parts = _parts(prompt, to)
    reads_scripts = layout == "script" and to == "speech"
    if reads_scripts and not all(map(_is_text, parts)):
        kinds = ", ".join(type(part).__name__ for part in parts if not _is_text(part))
        raise UserError(f"a script is text, not {kinds}; voices are given beside it")
    is_spoken = any(_is_text(part) and _has_words(part) for part in parts) and to == "speech"
    if not (is_spoken or voices):
        return as_prompt(parts, voice)
    script = as_script([part for part in parts if _is_text(part)])
    if script.num_lines > 1 or script.left_out:
        notice(f"the script has {script.describe()}")
    if reads_scripts:
        return script_prompt(script, _clips(script, voice, voices))
    _check_one_speaker(script)
    clips = _clips(script, voice, voices)
    return as_prompt(_without_labels(parts), next(iter(clips.values()), None))


def as_prompt(prompt: Prompt, voice: Audio | None = None) -> Document:
    """`prompt` as a Document of condition segments, after the clip `voice` if there is one."""
    parts = prompt.segments if isinstance(prompt, Document) else _parts(prompt)
    segments = [_as_segment(part) for part in parts]
    if voice is not None:
        segments.insert(0, Speech(voice))
    if all(isinstance(s, Text) and not s.text.strip() for s in segments):
        raise UserError("the prompt is empty")
    return Document(tuple(replace(segment, condition=True, loss=False) for segment in segments))


def _parts(prompt: Prompt, to: str = "text") -> list:
    """The parts of a prompt in order, with files read; a single thing is a list of one."""
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
    parts = list(prompt) if listed else [prompt]
    return [read_file(part, to) if isinstance(part, os.PathLike) else part for part in parts]


def read_voice(clip: Clip) -> Audio:
    """A clip of a speaker, read from its file where it is a path. UserError where it is no sound, or silent."""
    if isinstance(clip, str | os.PathLike):
        clip = load_audio(clip)
    if not isinstance(clip, Audio):
        raise UserError(f"a voice is an Audio or the path of a sound file, not {type(clip).__name__}")
    return check_voice(clip)


# ------------------------------------------------------------------ scripts


def as_script(parts: Sequence[str | Text | Script]) -> Script:
    """The turns of all parts; texts that follow each other are the lines of one script. UserError where it is empty."""
    if not any(map(_has_words, parts)):
        raise UserError("the prompt is empty")
    scripts: list[Script] = []
    for is_script, group in groupby(filter(_has_words, parts), key=lambda part: isinstance(part, Script)):
        members = list(group)
        scripts += members if is_script else [parse_script("\n".join(map(_words, members)))]
    return scripts[0] if len(scripts) == 1 else join_scripts(scripts)


def _is_text(part: Any) -> bool:
    return isinstance(part, str | Text | Script)


def _words(part: str | Text | Script) -> str:
    return part if isinstance(part, str) else part.text


def _has_words(part: str | Text | Script) -> bool:
    return bool(_words(part).strip())


def _without_labels(parts: Sequence) -> list:
    """`parts` with the words of each run of texts as one text."""
    found: list = []
    for is_spoken, group in groupby(parts, key=lambda part: _is_text(part) and _has_words(part)):
        members = list(group)
        found += [as_script(members).text] if is_spoken else members
    return found


def _clips(script: Script, voice: Audio | None, voices: Mapping[int | str, Audio]) -> dict[str, Audio]:
    """Clips by speaker; a single `voice` is that of the only one."""
    if voice is None:
        return script.cast(voices)
    if len(script.speakers) > 1:
        raise UserError(f"one voice, but speakers {', '.join(script.speakers)}; say whose it is, as in 1=clip.wav")
    return dict.fromkeys(script.speakers, voice)


def _check_one_speaker(script: Script) -> None:
    if len(script.speakers) > 1:
        raise UserError(
            f"the script has speakers {', '.join(script.speakers)}; this model reads a text and one voice "
            "(its config says prompt: document, scripts need prompt: script)"
        )


def _as_segment(part: Any) -> Segment:
    if isinstance(part, Segment):
        return part
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Script):
        _check_one_speaker(part)
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
    """The medium or the text (.txt) in a file, as part of a prompt; a text to be spoken (`to` "speech") is a script.

    Line ends at the end of a text are dropped. Raises UserError naming the file if it is missing, broken or of another
    kind.
    """
    suffix = Path(path).suffix.lower()
    found = modality_of_suffix(suffix)
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; a prompt is made of files")
    if found is not None:
        return found.load(path)
    if suffix == ".txt":
        return read_script(path) if to == "speech" else read_text(path).rstrip("\n")
    if suffix:
        raise UserError(f"{path}: files of this kind are not read, only {', '.join(readable())}")
    raise UserError(f"{path}: the name has no extension, so its kind is unknown (known: {', '.join(readable())})")


def readable() -> list[str]:
    """The suffixes of files that can be part of a prompt."""
    return [suffix for each in modalities() for suffix in each.suffixes] + [".txt"]


def means_file(word: str) -> bool:
    """Whether a word of the command line names a file: it exists, or it looks like a path or the name of a document.

    Words with white space in them are only taken for a file that exists, or that ends in a suffix that is read.
    """
    suffix = Path(word).suffix.lower()
    if suffix in readable() or os.path.isfile(word):
        return True
    looks_like_one = "/" in word or suffix in (*OTHER_MEDIA, *OTHER_DOCUMENTS)
    return looks_like_one and len(word.split()) == 1 and word.strip() == word
