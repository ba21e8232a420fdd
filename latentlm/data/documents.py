"""Tasks as documents: first the given segments as conditions without loss, then the wanted ones as targets.

Place in the flow: 2, items of a source ──▶ `types.Document`. There is no per-task code after this file (PAPER §1.1).
Conditions may be dropped for guidance (PAPER §1.5). Documents about the same picture or clip share one media object,
which the latent cache encodes once.
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
    """A document that asks for a medium by text: the text is given, the medium is the target."""
    return Document((_given(words), as_segment(medium)))


def medium_to_text(medium: Any, words: str) -> Document:
    """A document that asks for text about a medium: the medium is given, the text is the target."""
    return Document((as_segment(medium, condition=True, loss=False), Text(words)))


def text_to_image(prompt: str, image: PILImage) -> Document:
    """A prompt, then the picture to draw."""
    return Document((_given(prompt), Image(image)))


def image_to_text(image: PILImage, text: str) -> Document:
    """A picture, then the text that describes it."""
    return Document((Image(image, condition=True, loss=False), Text(text)))


def text_to_speech(words: str, speech: Audio, voice: Audio | None = None) -> Document:
    """Words, then the speech that says them. voice: another clip of the speaker, put before the words (PAPER §4.2)."""
    clip = () if voice is None else (Speech(voice, condition=True, loss=False),)
    return Document((*clip, _given(words), Speech(speech)))


def speech_to_text(speech: Audio, words: str) -> Document:
    """Speech, then its words."""
    return Document((Speech(speech, condition=True, loss=False), Text(words)))


def question(image: PILImage, asked: str, answer: str) -> Document:
    """A picture and a question, then the answer. A space is added after the question to separate the two texts."""
    return Document((Image(image, condition=True, loss=False), _given(f"{asked} "), Text(answer)))


def text(words: str) -> Document:
    """A plain text, all of it a target."""
    return Document((Text(words),))


def _given(words: str) -> Text:
    return Text(words, condition=True, loss=False)
