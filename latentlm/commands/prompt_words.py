"""The words of a prompt on the command line: text, files, and text from stdin.

Place in the flow: on top, the first part of `generate.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from ..data.script import Script
    from ..media.sound import Audio

    Part = str | PILImage | Audio | Script

STDIN = ("-", "/dev/stdin")


def read_parts(words: Sequence[str], to: str) -> list[Part]:
    """The words of a prompt as its parts, in order; errors as in `read_part`, and UserError for stdin named twice."""
    if sum(word in STDIN for word in words) > 1:
        raise UserError("stdin can be read only once: give - once")
    return [read_part(word, to) for word in words]


def read_part(word: str, to: str) -> Part:
    """One word of a prompt: the text in stdin for "-", the content of a file, or else the word itself.

    Raises UserError for a file that is broken or of a kind that is not read, and for a word that looks like the name of
    a file that does not exist.
    """
    from ..generation.prompts import means_file, read_file

    if word in STDIN:
        return as_text(sys.stdin.buffer.read(), "stdin", to)
    if not means_file(word):
        return word
    if not os.path.exists(word):
        raise UserError(f"{word}: no such file (if it is meant as words, put a space after it)")
    if os.path.isfile(word) or os.path.isdir(word):
        return read_file(word, to)
    with open(word, "rb") as pipe:  # as the shell's <(command) is
        return as_text(pipe.read(), word, to)


def as_text(data: bytes, origin: str, to: str) -> str | Script:
    """UTF-8 text as part of a prompt, a script if it is to be spoken. UserError naming `origin` for other bytes."""
    from ..data.script import parse_script

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    return parse_script(text, origin) if to == "speech" else text.rstrip("\r\n")


def spaced(parts: Sequence[Part], lines: bool = False) -> list[Part]:
    """`parts` with consecutive texts joined into one, by a space unless there is white space already.

    lines: a text of several words begins a new line, as in "Speaker 1: Hello." "Speaker 2: Good morning.".
    """
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            gap = " " if joined[-1][-1:].strip() and part[:1].strip() else ""
            joined[-1] += ("\n" if lines and len(part.split()) > 1 else gap) + part
        else:
            joined.append(part)
    return joined
