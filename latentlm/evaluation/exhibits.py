"""Exhibits of a user's own documents: the condition in words, with its picture or sound.

Place in the flow: documents and answers ──▶ galleries of the report.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..modalities.image import Image
from ..modalities.speech import Speech
from ..types import Document, Text
from .report import Exhibit


def exhibit_of(document: Document, text: str = "", **fields: Any) -> Exhibit:
    """The conditions of a document as an exhibit, with its first picture or, where there is none, its first sound.

    text: the answer in words; fields: of `Exhibit`, instead of those.
    """
    given = document.segments[:-1]
    picture = next((segment.content for segment in given if isinstance(segment, Image)), None)
    sound = None if picture else next((segment.content for segment in given if isinstance(segment, Speech)), None)
    return replace(Exhibit(given_words(document), text, picture=picture, sound=sound), **fields)


def given_words(document: Document) -> str:
    """The conditions in words: texts as they are, media as [image] or [speech]."""
    given = document.segments[:-1]
    return " ".join(s.text.strip() if isinstance(s, Text) else f"[{s.modality}]" for s in given)
