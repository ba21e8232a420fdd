"""Files as parts of a prompt: what a name's suffix says that it is.

Place in the flow: 4, in front of `prompts.py`; the command line reads its words by the same suffixes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.script import Script, read_script, read_text
from ..tokenizers.media import load_audio, load_image
from ..types import Audio

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
READ = (*PICTURES, *SOUNDS, ".txt")
OTHERS = (".heic", ".heif", ".avif", ".jxl", ".svg", ".m4a", ".aac", ".opus", ".aiff", ".aif", ".wma", ".mp4", ".mov")
"""Suffixes that nobody means as words, though no such file is read."""


def read_file(path: str | os.PathLike, to: str) -> str | PILImage | Audio | Script:
    """A picture, a sound or a text (.txt) as part of a prompt; a text to be spoken (`to` "speech") is a script.

    The line ends at a text's end, which editors write, are no part of it. Raises ValueError, one line that names the
    file, for one that is missing, broken or of another kind.
    """
    suffix = Path(path).suffix.lower()
    if suffix in SOUNDS:
        return load_audio(path)
    if suffix in PICTURES:
        return load_image(path)
    if suffix == ".txt":
        return read_script(path) if to == "speech" else read_text(path).rstrip("\n")
    if suffix:
        raise ValueError(f"{path}: files of this kind are not read, only {', '.join(READ)}")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    raise ValueError(f"{path}: its kind is unknown, the name has no extension (read are {', '.join(READ)})")


def means_file(word: str) -> bool:
    """Whether a word of the command line is a file's name: what ends like one, or is there."""
    suffix = Path(word).suffix.lower()
    return suffix in READ or (suffix in OTHERS and " " not in word) or os.path.isfile(word)
