"""Speech, and other answers that the model ends itself, for the conditions of a user's own held-out documents.

Place in the flow: pipeline ──▶ clips ──▶ figures and players of the report: whether they end and how long they are; of
speech the words that a recogniser hears, and the likeness of the voice to the clip that was given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.modalities import modality
from ..data.cache import LatentCache
from ..data.script import SYSTEM_LINE
from ..generation.pipeline import Pipeline
from ..media.sound import Audio
from ..modalities.speech import Speech
from ..types import Document, Latents, Text
from .classes import spread
from .exhibits import exhibit_of
from .protocol import Protocol, answer_media, ask, before_answer
from .recogniser import normalise, num_word_errors
from .reconstruction import missing_packages
from .report import Gallery, Report, interval
from .speaker import available as speaker_encoder_available
from .speaker import speaker_similarity
from .speech_judge import speech_judge_for
from .statistics import mean_per_element

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SHOWN = 8
MAX_LATENTS = 1500
"""Latents of the real answers to all prompts together (two minutes of speech at 12.5 per second); at least SHOWN
prompts are answered."""
MAX_SECONDS = 30.0
"""Length at which an utterance is cut."""
LONGER = 2
"""Length at which other answers are cut, in multiples of the longest real one."""
NUM_TRAINING_TEXTS = 300
SCRIPT_LINE = re.compile(r" Speaker \d+: (.+)\n")


@dataclass(frozen=True)
class Spoken:
    """A held-out document, the answer generated for it, and whether the model ended the answer."""

    document: Document
    made: Any
    ended: bool

    @property
    def real(self) -> Any:
        return self.document.segments[-1].content


def evaluate_spoken(
    pipeline: Pipeline,
    protocol: Protocol,
    report: Report,
    name: str,
    asked: Sequence[Document],
    training: Sequence[Sequence[Document]],
    cache: LatentCache,
    origin: str,
) -> None:
    """Generate the answers in modality `name` of the documents `asked` and measure them.

    training: the model's own training documents with `name`, whose texts tell whether the vocabulary is closed.
    cache: has the latents of the real answers, whose number limits that of the generated ones.
    """
    lengths = [len(cache.resolve(document).segments[-1].content) for document in asked]
    num = max(SHOWN, int((np.cumsum(lengths) <= MAX_LATENTS).sum()))
    chosen = list(asked[: min(num, protocol.counts.spoken)])
    prompts = [before_answer(document) for document in chosen]
    limit = LONGER * max(lengths[: len(chosen)])
    outputs = ask(pipeline, prompts, name, protocol, "documents", MAX_SECONDS, limit)
    spoken = [
        Spoken(document, answer_media(output), output.finish_reason == "stop")
        for document, output in zip(chosen, outputs, strict=True)
    ]
    how = protocol.describe(f"{len(spoken)} documents of {origin} that end in {name}", "documents")
    _add_lengths(report, name, spoken, how)
    heard = [""] * len(spoken)
    if name == "speech":
        heard = _add_words(report, spoken, training, how)
        _add_speakers(report, spoken, how)
    _add_gallery(report, name, spoken, heard, how)


def spoken_words(document: Document) -> str:
    """The words that a document asks to be spoken: its texts, or of a script the turns without the speakers."""
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    if texts and texts[0] == SYSTEM_LINE:
        texts = [match[1] for match in map(SCRIPT_LINE.fullmatch, texts) if match]
    return " ".join(texts)


def _add_lengths(report: Report, name: str, spoken: Sequence[Spoken], how: str) -> None:
    found, prefix = modality(name), "documents" if name == "speech" else f"documents.{name}"
    ended = [item.ended for item in spoken]
    rate = float(np.mean(ended))
    report.add(f"{prefix}.stop_rate", rate, f"{how}; ended by the model itself", interval=interval(rate, len(ended)))
    made, real = (
        [found.length(medium) for medium in media]
        for media in ([item.made for item in spoken], [item.real for item in spoken])
    )
    ratio = mean_per_element(made, real)
    report.add(
        f"{prefix}.length_ratio",
        ratio.value,
        f"{how}; generated length divided by the real length",
        reference=1.0,
        reference_name="real",
        standard_error=ratio.standard_error,
    )


def _add_words(report: Report, spoken: Sequence[Spoken], training: Sequence[Sequence[Document]], how: str) -> list[str]:
    """Figures of the words heard; returns them for each answer, empty where nothing can be heard."""
    missing = missing_packages(("pocketsphinx", "jiwer"))
    texts = [normalise(spoken_words(item.document)) for item in spoken]
    others = [spoken_words(document) for document in spread(training, NUM_TRAINING_TEXTS) if _is_spoken(document)]
    judge = missing or speech_judge_for([*texts, *others])
    if isinstance(judge, str):
        report.leave_out("documents.speech_wer", judge)
        return [""] * len(spoken)
    judged = [index for index, text in enumerate(texts) if text]
    if not judged:
        report.leave_out("documents.speech_wer", "its texts have no words")
        return [""] * len(spoken)
    heard, real = ["" for _ in spoken], ["" for _ in spoken]
    for index in judged:
        heard[index] = judge.recogniser.hear(spoken[index].made)
        real[index] = judge.recogniser.hear(spoken[index].real)
    words = [len(texts[index].split()) for index in judged]
    errors, real_errors = (
        mean_per_element([num_word_errors(found[index], texts[index]) for index in judged], words)
        for found in (heard, real)
    )
    report.add(
        "documents.speech_wer",
        errors.value,
        f"{how}; word error rate, {judge.description}",
        reference=real_errors.value,
        reference_name="real clips",
        standard_error=errors.standard_error,
    )
    if judge.closed:
        rate, real_rate = (float(np.mean([found[i] == texts[i] for i in judged])) for found in (heard, real))
        report.add(
            "documents.speech_accuracy",
            rate,
            f"{how}; every word right, {judge.description}",
            reference=real_rate,
            reference_name="real clips",
            interval=interval(rate, len(judged)),
        )
    return heard


def _is_spoken(document: Document) -> bool:
    return len(document.segments) > 1 and any(isinstance(segment, Text) for segment in document.segments)


def _add_speakers(report: Report, spoken: Sequence[Spoken], how: str) -> None:
    """How alike the voices of generated and given clips are, of documents that give one voice."""
    voices = [_voice(item.document) for item in spoken]
    given = [(item, voice) for item, voice in zip(spoken, voices, strict=True) if voice is not None]
    if not given:
        return
    if not speaker_encoder_available():
        report.leave_out("documents.speaker_similarity", "resemblyzer is not installed")
        return
    made = [speaker_similarity(item.made, voice) for item, voice in given]
    real = [speaker_similarity(item.real, voice) for item, voice in given]
    ones = [1] * len(given)
    found = mean_per_element(made, ones)
    report.add(
        "documents.speaker_similarity",
        found.value,
        f"{how}; cosine of resemblyzer's speaker embeddings of the answer and of the given voice; {len(given)} clips",
        reference=float(np.mean(real)),
        reference_name="real clips",
        standard_error=found.standard_error,
    )


def _voice(document: Document) -> Audio | None:
    """The clip of the only voice that a document gives; None where it gives none or several."""
    clips = [segment.content for segment in document.segments[:-1] if isinstance(segment, Speech)]
    return clips[0] if len(clips) == 1 and not isinstance(clips[0], Latents) else None


def _add_gallery(report: Report, name: str, spoken: Sequence[Spoken], heard: Sequence[str], how: str) -> None:
    found = modality(name)
    exhibits = []
    for item, words in list(zip(spoken, heard, strict=True))[:SHOWN]:
        end = "ended" if item.ended else "cut"
        text = f"{end}; real {found.describe(item.real)}" + (f"; heard “{words}”" if words else "")
        exhibits.append(exhibit_of(item.document, text, **_shown(found.show(item.made), found.show(item.real))))
    report.galleries.append(Gallery(f"documents-{name}", f"{name.capitalize()} made", how + ".", tuple(exhibits)))


def _shown(made: PILImage | Audio, real: PILImage | Audio) -> dict[str, Any]:
    """The fields of an exhibit: a sound, or a picture beside the real one."""
    return {"sound": made, "picture": None} if isinstance(made, Audio) else {"picture": made, "reference": real}
