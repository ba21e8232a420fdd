"""Speech recognition as the judge of speech: pocketsphinx (optional dependency), with a closed or an open vocabulary.

Place in the flow: sound ──▶ words ──▶ `speech.py`, `spoken.py`. With a grammar it must choose one of its sentences, so
it tests whether the right one was said, not how clearly. With the open vocabulary (a general English language model) it
makes many mistakes on clean speech. Each figure therefore stands beside that of the same recogniser on real clips.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ..data.embedded import phrases
from ..errors import UserError
from ..media.sound import Audio

SAMPLE_RATE = 16000
PEAK = 0.5
PADDING_SECONDS = 0.25
NOISE = 1e-3
"""Standard deviation of the noise added to each clip, -60 dB of full scale: with digital silence around the words the
recogniser gets 86 % of real digit words right, with the noise 98 %."""


def available() -> bool:
    """Whether pocketsphinx is installed."""
    return importlib.util.find_spec("pocketsphinx") is not None


class Recogniser:
    """One pocketsphinx decoder; deterministic, and no clip has an effect on the next. Reuse it: loading takes a second.

    grammar: JSGF text; None: the open vocabulary. Raises UserError where pocketsphinx is not installed.
    """

    def __init__(self, grammar: str | None = None):
        if not available():
            raise UserError("judging speech needs pocketsphinx: pip install pocketsphinx")
        from pocketsphinx import Decoder

        options = {"samprate": SAMPLE_RATE, "bestpath": False, "loglevel": "FATAL", "cmn": "batch"}
        if grammar is None:
            self.decoder = Decoder(**options)
        else:
            self.decoder = Decoder(**options, lm=None)
            self.decoder.add_jsgf_string("grammar", grammar)
            self.decoder.activate_search("grammar")

    @classmethod
    def of_words(cls, words: Sequence[str]) -> Recogniser:
        """A recogniser that hears one of `words`, each a word or sentence in its spelling (`normalise`)."""
        return cls(f"#JSGF V1.0;\ngrammar words;\npublic <word> = {' | '.join(words)};\n")

    @classmethod
    def of_phrases(cls) -> Recogniser:
        """A recogniser that hears any sentence of `data.embedded.phrases`: every combination, held out or not."""
        rules = {
            "number": phrases.DIGITS,
            "colour": phrases.COLOURS,
            "thing": phrases.THINGS,
            "shape": phrases.SHAPES,
            "side": phrases.SIDES,
            "greeting": phrases.GREETINGS,
        }
        sentences = ("<number> <colour> <thing>", "a <colour> <shape> at the <side>", "the <thing> are <colour>")
        lines = [f"<{name}> = {' | '.join(texts)};" for name, texts in rules.items()]
        public = f"public <sentence> = {' | '.join((*sentences, '<number>', '<greeting>'))};"
        return cls("\n".join(["#JSGF V1.0;", "grammar phrases;", *lines, public, ""]))

    def knows(self, word: str) -> bool:
        """Whether the English pronunciation dictionary has `word`."""
        return self.decoder.lookup_word(word) is not None

    def hear(self, audio: Audio) -> str:
        """The most likely words of a clip; empty where none are recognised."""
        self.decoder.start_utt()
        self.decoder.process_raw(_prepare(audio).tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


def _prepare(audio: Audio) -> np.ndarray:
    """The clip at 16 kHz, int16, with its peak at half of full scale, padded, with faint noise."""
    from ..media.sound import resample

    samples = resample(audio, SAMPLE_RATE).samples.detach().float().cpu().numpy().astype(np.float64)
    samples = samples * (PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-4))
    samples = np.pad(samples, round(PADDING_SECONDS * SAMPLE_RATE))
    samples = samples + np.random.default_rng(0).normal(0, NOISE, len(samples))
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


def normalise(text: str) -> str:
    """`text` as the recogniser writes it: lower case, no punctuation except apostrophes inside words, single spaces."""
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", unicodedata.normalize("NFC", text).lower())
    return " ".join(words).replace("’", "'")


def num_word_errors(heard: str, said: str) -> int:
    """Substitutions, insertions and deletions that turn the words of `said` into those of `heard`.

    Raises UserError where jiwer is not installed.
    """
    if importlib.util.find_spec("jiwer") is None:
        raise UserError("word error rates need jiwer: pip install jiwer")
    import jiwer

    found = jiwer.process_words(said, heard)
    return found.substitutions + found.insertions + found.deletions
