"""Embedded speech: the words heard in generated utterances, their lengths, and transcriptions of real clips.

Place in the flow: pipeline ──▶ utterances and words ──▶ figures and players of the report.
Digit words are recognised with a grammar of the ten words, phrases that no training clip contains with a grammar of all
phrases; each figure stands beside that of real clips of the held-out voices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ..data import documents
from ..data.embedded import phrases, speech
from ..generation.pipeline import Pipeline
from ..media.sound import Audio
from .protocol import PHRASE_SECONDS, WORD_SECONDS, Protocol, answer_media, answer_text, ask, before_answer
from .recogniser import Recogniser, num_word_errors
from .report import Exhibit, Gallery, Report, interval

SHOWN_WORDS, SHOWN_PHRASES, SHOWN_READ = 20, 12, 12
LENGTHS = (0.5, 2.0)
"""Bounds of the length of an utterance that ended well, as multiples of the mean real length."""


@dataclass(frozen=True)
class Utterance:
    """A text, its generated clip, whether the model ended the clip, and the words that the recogniser heard."""

    text: str
    audio: Audio
    ended: bool
    heard: str

    @property
    def right(self) -> bool:
        return self.heard == self.text


def evaluate_speech(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    """Say the digit words and the held-out phrases; write down the clips of the held-out voices.

    Phrases are left out where the protocol counts none of them. Raises UserError where pocketsphinx or eSpeak NG
    is not installed.
    """
    _say_words(pipeline, protocol, report)
    if protocol.counts.phrases:
        _say_phrases(pipeline, protocol, report)
    else:
        report.leave_out("speech.phrase", "the model was trained on words alone, not on phrases")
    _write_down(pipeline, protocol, report)


def _say(
    pipeline: Pipeline, protocol: Protocol, texts: list[str], judge: Recogniser, seconds: float
) -> list[Utterance]:
    nothing = Audio(torch.zeros(0), speech.SAMPLE_RATE)  # the place of the answer, which is cut off
    prompts = [before_answer(documents.text_to_speech(text, nothing)) for text in texts]
    outputs = ask(pipeline, prompts, "speech", protocol, "speech", seconds)
    audios = [answer_media(output) for output in outputs]
    return [
        Utterance(text, audio, output.finish_reason == "stop", judge.hear(audio))
        for text, audio, output in zip(texts, audios, outputs, strict=True)
    ]


@cache
def real_utterances(kind: str, num: int | None = None) -> tuple[Utterance, ...]:
    """The first `num` held-out clips of a kind, "digit" or "phrase", with the words that the recogniser hears."""
    judge = recogniser_of(kind)
    items = [item for item in speech.load("held_out") if item.kind == kind][:num]
    return tuple(Utterance(item.text, item.audio, True, judge.hear(item.audio)) for item in items)


@cache
def recogniser_of(kind: str) -> Recogniser:
    """The recogniser of the digit words, or of all phrases."""
    return Recogniser.of_words(phrases.DIGITS) if kind == "digit" else Recogniser.of_phrases()


# ------------------------------------------------------------------ words


def _say_words(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    judge, real = recogniser_of("digit"), real_utterances("digit")
    num = protocol.counts.words
    texts = [phrases.DIGITS[index % len(phrases.DIGITS)] for index in range(num)]
    said = _say(pipeline, protocol, texts, judge, WORD_SECONDS)
    rate = _rate(said)
    real_rate = _rate(real)
    how = protocol.describe(f"{num} digit words said, no voice given, each with its own seed", "speech")
    scored = f"pocketsphinx with a grammar of the ten words; real: {len(real)} eSpeak clips of the six held-out voices"
    report.add(
        "speech.word_ratio",
        rate / real_rate,
        f"{how}; share of words recognised, divided by that of the real clips; {scored}",
        reference=1.0,
        reference_name="real clips",
        interval=interval(rate, num) / real_rate,
    )
    report.add(
        "speech.word_accuracy",
        rate,
        f"{how}; {scored}",
        reference=real_rate,
        reference_name="real clips",
        interval=interval(rate, num),
    )
    report.add("speech.word_accuracy_real", real_rate, scored, interval=interval(real_rate, len(real)))
    _score_lengths(report, said, real, how)
    report.galleries.append(
        _players(
            "words",
            "Digit words said",
            "The first ones. No voice is given, so the voice depends on the seed.",
            said[:SHOWN_WORDS],
        )
    )


def _score_lengths(report: Report, said: Sequence[Utterance], real: Sequence[Utterance], how: str) -> None:
    ratios = length_ratios(said, real)
    good = [item.ended and LENGTHS[0] <= ratio <= LENGTHS[1] for item, ratio in zip(said, ratios, strict=True)]
    real_good = float(np.mean([LENGTHS[0] <= ratio <= LENGTHS[1] for ratio in length_ratios(real, real)]))
    measured = f"against the mean length of the same word in the {len(real)} real held-out clips"
    rate = float(np.mean(good))
    report.add(
        "speech.stop_rate",
        rate,
        f"{how}; ended by the model itself, with a length within {LENGTHS[0]}–{LENGTHS[1]:g} × {measured}",
        reference=real_good,
        reference_name="real clips",
        interval=interval(rate, len(good)),
    )
    report.add(
        "speech.length_ratio_median",
        float(np.median(ratios)),
        f"{how}; {measured}",
        reference=1.0,
        reference_name="real",
    )


def length_ratios(said: Sequence[Utterance], real: Sequence[Utterance]) -> list[float]:
    """Length of each utterance over the mean real length of its text."""
    lengths: dict[str, list[float]] = {}
    for item in real:
        lengths.setdefault(item.text, []).append(item.audio.seconds)
    return [item.audio.seconds / float(np.mean(lengths[item.text])) for item in said]


# ------------------------------------------------------------------ phrases


def _say_phrases(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    texts = list(phrases.phrases("held_out"))[: protocol.counts.phrases]
    said = _say(pipeline, protocol, texts, recogniser_of("phrase"), PHRASE_SECONDS)
    real = real_utterances("phrase", 3 * protocol.counts.phrases)
    how = protocol.describe(f"{len(texts)} phrases never spoken in training", "speech")
    scored = "pocketsphinx with a grammar of all phrases"
    beside = {"reference_name": f"{len(real)} real clips"}
    report.add(
        "speech.phrase_wer", word_error_rate(said), f"{how}; word error rate, {scored}",
        reference=word_error_rate(real), **beside,
    )  # fmt: skip
    report.add(
        "speech.phrase_accuracy", _rate(said), f"{how}; every word right, {scored}",
        reference=_rate(real), interval=interval(_rate(said), len(said)), **beside,
    )  # fmt: skip
    stops = float(np.mean([item.ended for item in said]))
    report.add(
        "speech.phrase_stop_rate", stops, f"{how}; ended by the model itself", interval=interval(stops, len(said))
    )
    note = "Phrases that no training clip contains."
    report.galleries.append(_players("phrases", "New phrases said", note, said[:SHOWN_PHRASES]))


def word_error_rate(said: Sequence[Utterance]) -> float:
    """Word errors of all utterances over their words."""
    errors = sum(num_word_errors(item.heard, item.text) for item in said)
    return errors / sum(len(item.text.split()) for item in said)


def _rate(said: Sequence[Utterance]) -> float:
    return float(np.mean([item.right for item in said]))


# ------------------------------------------------------------------ speech → text


def _write_down(pipeline: Pipeline, protocol: Protocol, report: Report) -> None:
    real = speech.load("held_out")
    words = [item for item in real if item.kind == "digit"]
    spoken = [item for item in real if item.kind == "phrase"][: 3 * protocol.counts.phrases]
    items = words + spoken
    prompts = [before_answer(documents.speech_to_text(item.audio, item.text)) for item in items]
    answers = [answer_text(output) for output in ask(pipeline, prompts, "text", protocol, "speech")]
    right = [answer == item.text for answer, item in zip(answers, items, strict=True)]
    rates = {"transcribe": right[: len(words)], "phrase_transcribe": right[len(words) :]}
    kinds = {"transcribe": "digit words", "phrase_transcribe": "clips of phrases never spoken in training,"}
    for name, marks in rates.items():
        if not marks:
            continue
        rate = float(np.mean(marks))
        report.add(
            f"speech.{name}_accuracy",
            rate,
            protocol.describe(f"{len(marks)} {kinds[name]} of the six held-out voices, speech → text, exact match"),
            reference=1 / len(phrases.DIGITS) if name == "transcribe" else None,
            reference_name="chance" if name == "transcribe" else "",
            interval=interval(rate, len(marks)),
        )
    shown = [*range(SHOWN_READ // 2), *range(len(words), min(len(items), len(words) + SHOWN_READ // 2))]
    exhibits = tuple(
        Exhibit(f"is “{items[i].text}” ({items[i].voice.name})", answers[i], right[i], sound=items[i].audio)
        for i in shown
    )
    note = "Real clips of voices that were not in training, and the words that the model wrote."
    report.galleries.append(Gallery("transcribed", "Speech read", note, exhibits))


def _players(name: str, title: str, note: str, said: list[Utterance]) -> Gallery:
    exhibits = tuple(
        Exhibit(item.text, "" if item.right else f"heard “{item.heard}”", item.right, sound=item.audio) for item in said
    )
    return Gallery(name, title, f"{note} Right or wrong according to the recogniser.", exhibits)
