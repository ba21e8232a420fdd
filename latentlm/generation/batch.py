"""One prompt or several: how `Pipeline.generate` reads a list.

Place in the flow: 4, in front of `prompts.py`, which makes each prompt a document.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.script import Script
from ..errors import UserError, notice
from ..types import Document

if TYPE_CHECKING:
    from .prompts import Prompt


def split_prompts(prompt: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts in the argument of `generate`, as a list.

    A list is a batch if every item is a prompt by itself: a text, a list, a Document or a Script. A list with a
    picture, a sound, a path or a segment in it holds the parts of one prompt, in order; texts may be among them.
    Raises UserError for an empty list, and for a list that mixes parts with lists or Documents.
    """
    if not is_list(prompt):
        return [prompt]
    if not prompt:
        raise UserError("the list of prompts is empty")
    if all(isinstance(item, str | Document | Script) or is_list(item) for item in prompt):
        return list(prompt)
    for item in prompt:
        if isinstance(item, Document) or is_list(item):
            raise UserError(
                f"a list holds either prompts or the parts of one prompt, here a {type(item).__name__} beside parts"
            )
    return [prompt]


def check_single(prompt: Prompt) -> None:
    """Raise UserError for a list of several texts as the prompt of one Request: `generate` would read it as a batch."""
    if is_list(prompt) and len(prompt) > 1 and all(isinstance(item, str) for item in prompt):
        raise UserError(
            "a Request has one prompt, not a list of texts; "
            "make a Request of each, or join them in a Document if they belong together"
        )


def say_unread_files(prompt: Prompt) -> None:
    """A Notice for each text of a prompt that is also the name of a file: the text is used, not the file."""
    for item in prompt if is_list(prompt) else [prompt]:
        if isinstance(item, str) and os.path.isfile(item):
            notice(f"the prompt {item!r} is read as words; to read the file of that name, pass pathlib.Path({item!r})")


def is_list(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether `prompt` is a list a tuple, or another sequence except str and bytes."""
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
