"""A closed-vocabulary recogniser as the judge of speech: pocketsphinx with a grammar (optional dependency).

Place in the flow: sound ──▶ words ──▶ `speech.py`. It is a wiring check, not an ear: with the digit grammar it must
pick one of ten words, with the phrase grammar a sentence of the closed language. Figures are therefore reported beside
what the same recogniser reaches on real clips.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

from ..data.embedded import phrases
from ..errors import UserError
from ..media.sound import Audio

SAMPLE_RATE = 16000
PEAK = 0.5
PADDING_SECONDS = 0.25
NOISE = 1e-3
"""Digital silence makes the recogniser fail (86 % instead of 98 % of real digit words): every clip gets the same faint
noise, below -60 dB of full scale."""


def available() -> bool:
    """Whether pocketsphinx is installed."""
    return importlib.util.find_spec("pocketsphinx") is not None


class Recogniser:
    """One decoder and its grammar; reuse it. Deterministic, and no clip has an effect on the next."""

    def __init__(self, grammar: str):
        if not available():
            raise UserError("judging speech needs pocketsphinx: pip install latentlm[demo]")
        from pocketsphinx import Decoder

        self.decoder = Decoder(samprate=SAMPLE_RATE, bestpath=False, loglevel="FATAL", lm=None, cmn="batch")
        self.decoder.add_jsgf_string("grammar", grammar)
        self.decoder.activate_search("grammar")

    @classmethod
    def of_words(cls, words: Sequence[str]) -> Recogniser:
        """Hears exactly one of `words`."""
        return cls(f"#JSGF V1.0;\ngrammar words;\npublic <word> = {' | '.join(words)};\n")

    @classmethod
    def of_phrases(cls) -> Recogniser:
        """Hears any sentence of the language of `data.embedded.phrases`: every combination, held out or not."""
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

    def hear(self, audio: Audio) -> str:
        """The most likely words; empty where none are heard."""
        self.decoder.start_utt()
        self.decoder.process_raw(_prepare(audio).tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


def _prepare(audio: Audio) -> np.ndarray:
    """16 kHz, peak at half of full scale, faint noise and padding: int16."""
    from ..media.sound import resample

    samples = resample(audio, SAMPLE_RATE).samples.detach().float().cpu().numpy().astype(np.float64)
    samples = samples * (PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-4))
    samples = np.pad(samples, round(PADDING_SECONDS * SAMPLE_RATE))
    samples = samples + np.random.default_rng(0).normal(0, NOISE, len(samples))
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


def num_word_errors(heard: str, said: str) -> int:
    """Substitutions, insertions and deletions that turn `said` into `heard` (Levenshtein distance over words)."""
    target = said.split()
    costs = list(range(len(target) + 1))
    for row, word in enumerate(heard.split(), 1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(target, 1):
            diagonal, costs[column] = (
                costs[column],
                min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != other)),
            )
    return costs[-1]
