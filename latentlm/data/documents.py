"""Tasks as documents: what is given comes first as a condition without loss, what is wanted follows as the target.

Place in the flow: 2, items of a source ──▶ `types.Document`. There is no per-task code after this file (PAPER §1.1).
A condition may be dropped for guidance (PAPER §1.5). Builders refer to the media objects they are given, so documents
about the same picture or clip share one object, and a latent cache encodes it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.modalities import as_segment
from ..media.sound import Audio
from ..modalities.image import Image
from ..modalities.speech import Speech
from ..types import Document, Text

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def text_to_medium(words: str, medium: Any) -> Document:
    """Draw, say, …: text ──▶ a medium of any modality."""
    return Document((_given(words), as_segment(medium)))


def medium_to_text(medium: Any, words: str) -> Document:
    """Describe, write down, …: a medium of any modality ──▶ text."""
    return Document((as_segment(medium, condition=True, loss=False), Text(words)))


def text_to_image(prompt: str, image: PILImage) -> Document:
    """Draw: prompt ──▶ picture."""
    return Document((_given(prompt), Image(image)))


def image_to_text(image: PILImage, text: str) -> Document:
    """Describe: picture ──▶ text."""
    return Document((Image(image, condition=True, loss=False), Text(text)))


def text_to_speech(words: str, speech: Audio, voice: Audio | None = None) -> Document:
    """Say: words ──▶ speech; with `voice`, another clip of the speaker comes before the words (PAPER §4)."""
    clip = () if voice is None else (Speech(voice, condition=True, loss=False),)
    return Document((*clip, _given(words), Speech(speech)))


def speech_to_text(speech: Audio, words: str) -> Document:
    """Write down: speech ──▶ words."""
    return Document((Speech(speech, condition=True, loss=False), Text(words)))


def question(image: PILImage, asked: str, answer: str) -> Document:
    """Answer: picture, question ──▶ answer. A space is put after the question, which keeps the two apart."""
    return Document((Image(image, condition=True, loss=False), _given(f"{asked} "), Text(answer)))


def text(words: str) -> Document:
    """Plain text, all of it a target."""
    return Document((Text(words),))


def _given(words: str) -> Text:
    return Text(words, condition=True, loss=False)
