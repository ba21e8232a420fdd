"""Prepares the shell's arguments for the parser (expands "~" and "-"), and explains errors of quoting.

Place in the flow: on top, around the parser of `cli.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, get_args

from cyclopts import CycloptsError, Token
from cyclopts.exceptions import UnknownOptionError, UnusedCliTokensError

from ..errors import UserError

HOME = re.compile(r"(?P<before>(?:-{0,2}[\w.-]+=)*)(?P<path>~[\w.-]*/.*)", re.DOTALL)
"""A path below a home folder, alone or as the value of --OPTION=, NAME= or both."""

OPTION = re.compile(r"--[a-z][a-z-]*(=.*)?", re.DOTALL)
FLAGS = ("--", "--raw")
"""Words of `generate` that begin with dashes and take no value."""


def prepared(arguments: Sequence[str]) -> list[str]:
    """`arguments` with "~" expanded in every path, also after "=", where shells do not expand it.

    The "-" of a prompt becomes /dev/stdin: the parser would take it for an option.
    """
    ready = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("--") and before not in FLAGS
        ready.append("/dev/stdin" if word == "-" and not is_value else expanded(word))
    return ready


def expanded(word: str) -> str:
    """`word` with a leading "~/" or "~name/" of its path as that home folder; unknown names stay as they are."""
    found = HOME.fullmatch(word)
    return found["before"] + os.path.expanduser(found["path"]) if found else word


def whole(hint: Any, tokens: Sequence[Token]) -> int | str:
    """Converter for options of type int, or int and Literal words (`hint`). Raises UserError for anything else."""
    value = tokens[0].value
    words = [word for each in get_args(hint) for word in get_args(each)]
    if value in words:
        return value
    try:
        return int(value)
    except ValueError:
        wanted = " or ".join(["a whole number", *words])
        raise UserError(f"expected {wanted}, got {value!r}") from None


def explain(error: CycloptsError, arguments: Sequence[str]) -> str:
    """The parser's message, with a hint where the shell split a value or a prompt begins with a dash."""
    message = " ".join(str(error).split())
    if isinstance(error, UnusedCliTokensError) and (value := _split_value(arguments)):
        return f"the shell split the value of --set at its spaces; quote it: --set '{value.strip('“”‘’')}'"
    if isinstance(error, UnknownOptionError) and arguments[:1] == ["generate"]:
        word = error.token.value or error.token.keyword or ""
        if not OPTION.fullmatch(word):
            return f"{message.rstrip('.')}; a prompt that begins with a dash comes last, after --: -- {word!r}"
    return message


def _split_value(arguments: Sequence[str]) -> str | None:
    """The first value of --set whose brackets close in a later argument, joined with these; None if there is none."""
    for number, option in enumerate(arguments):
        if option == "--set" or option.startswith("--set="):
            words = [*option.split("=", 1)[1:], *arguments[number + 1 :]]
            closed = (end for end, value in enumerate(accumulate(words, "{} {}".format)) if _is_closed(value))
            if (end := next(closed, 0)) > 0:
                return " ".join(words[: end + 1])
    return None


def _is_closed(value: str) -> bool:
    return value.count("[") == value.count("]") and value.count("{") == value.count("}")
