"""A recogniser for the texts of a user's own speech: closed where they are few sentences said many times, else open.

Place in the flow: texts of documents ──▶ `SpeechJudge` ──▶ `spoken.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .recogniser import Recogniser, normalise

MAX_SENTENCES = 200
MIN_REPEATS = 4
"""A vocabulary is closed where each sentence is said this often on average."""
MAX_UNKNOWN = 0.1
"""Share of the words that may be missing from the recogniser's English dictionary."""


@dataclass(frozen=True)
class SpeechJudge:
    """A recogniser and a description of its vocabulary."""

    recogniser: Recogniser
    closed: bool
    description: str


def speech_judge_for(texts: Sequence[str]) -> SpeechJudge | str:
    """The recogniser for speech with these texts, or the reason why there is none.

    Raises UserError if pocketsphinx is not installed.
    """
    said = [text for text in map(normalise, texts) if text]
    if not said:
        return "its texts have no words"
    open_recogniser = _open_recogniser()
    words = [word for text in said for word in text.split()]
    unknown = {word for word in set(words) if not open_recogniser.knows(word)}
    if sum(word in unknown for word in words) > MAX_UNKNOWN * len(words):
        some = ", ".join(sorted(unknown)[:3])
        return f"the recogniser knows English words only, and not {some}"
    sentences = sorted(set(said))
    if len(sentences) > MAX_SENTENCES or len(sentences) * MIN_REPEATS > len(said) or len(sentences) < 2 or unknown:
        return SpeechJudge(open_recogniser, False, "pocketsphinx, open English vocabulary")
    return SpeechJudge(
        Recogniser.of_words(sentences), True, f"pocketsphinx with a grammar of the {len(sentences)} texts of the data"
    )


@cache
def _open_recogniser() -> Recogniser:
    return Recogniser()
