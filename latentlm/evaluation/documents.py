"""Evaluation on a user's own held-out documents: losses, and the answers that the model gives to their conditions.

Place in the flow: documents that were not trained on ──▶ `losses.py` for scores, `drawn.py` and `spoken.py` for media,
texts here ──▶ the report. Documents of shards hold latents instead of media: they are scored only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..config.modalities import modality
from ..data.cache import LatentCache
from ..generation.pipeline import Pipeline
from ..generation.scores import is_plain
from ..media.sound import Audio
from ..types import Document, Latents, Text
from .classes import spread
from .drawn import evaluate_drawn
from .exhibits import exhibit_of, given_words
from .losses import score_others, score_texts
from .protocol import Protocol, answer_text, ask, before_answer
from .recogniser import num_word_errors
from .reconstruction import missing_packages, reconstruct_images, reconstruct_speech
from .report import Exhibit, Gallery, Report, interval
from .spoken import evaluate_spoken
from .statistics import mean_per_element

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SHOWN = {"text": 16, "image": 24, "speech": 8}
NO_TRAINING: Mapping[str, Sequence[Sequence[Document]]] = {}


def evaluate_documents(
    pipeline: Pipeline,
    protocol: Protocol,
    report: Report,
    documents: Sequence[Document],
    origin: str,
    training: Mapping[str, Sequence[Sequence[Document]]] = NO_TRAINING,
) -> None:
    """Score at most `counts.documents` of the documents and measure the answers to those that end in a target.

    origin: where they come from, for the protocol. training: the model's own training documents by modality, for the
    judges. Raises UserError for media that the model has no tokenizer for.
    """
    chosen = spread([documents], protocol.counts.documents)
    cache = LatentCache({name: t for name, t in pipeline.tokenizers.items() if name != "text"})
    limit = pipeline.model.config.transformer.context_length
    fitting = [document for document in chosen if len(pipeline.encoder(cache.resolve(document))) <= limit]
    if len(fitting) < len(chosen):
        report.notes.append(f"documents: {len(chosen) - len(fitting)} are longer than the context and were left out.")
    if not fitting:
        report.leave_out("documents", "all are longer than the context" if chosen else "there are none")
        return
    plain = [document for document in fitting if is_plain(document)]
    score_texts(pipeline, protocol, report, plain, origin)
    others = [cache.resolve(document) for document in fitting if not is_plain(document)]
    score_others(pipeline, protocol, report, others, origin)
    media = [document for document in fitting if not _holds_latents(document)]
    if len(media) < len(fitting):
        report.notes.append(
            f"documents: {len(fitting) - len(media)} come from shards, which hold no media, and were only scored."
        )
    for name in ("text", *pipeline.model.modalities):
        asked = [document for document in media if _answer_of(document) == name]
        if asked and name == "text":
            _write(pipeline, protocol, report, asked, origin)
        elif asked and modality(name).ends_itself:
            evaluate_spoken(pipeline, protocol, report, name, asked, training.get(name, ()), cache, origin)
        elif asked:
            evaluate_drawn(pipeline, protocol, report, asked, training.get(name, ()), origin)
    reconstruct_documents(pipeline.tokenizers, protocol, report, media, origin)


def _holds_latents(document: Document) -> bool:
    return any(isinstance(segment.content, Latents) for segment in document.segments if not isinstance(segment, Text))


# ------------------------------------------------------------------ reconstruction


def reconstruct_documents(
    tokenizers: Mapping, protocol: Protocol, report: Report, documents: Sequence[Document], origin: str
) -> None:
    """Reconstruct the first `counts.reconstructions` pictures and clips of the documents by the tokenizers alone."""
    media: dict[str, dict[int, PILImage | Audio]] = {"image": {}, "speech": {}}
    for document in documents:
        for segment in document.segments:
            name = segment.modality
            if name in media and len(media[name]) < protocol.counts.reconstructions:
                media[segment.modality][id(segment.content)] = segment.content
    note = f"Left the picture of {origin}, right its reconstruction by the tokenizer."
    if media["image"] and "image" in tokenizers:
        images = list(media["image"].values())
        made = reconstruct_images(tokenizers["image"], report, "documents.image", images, f"pictures of {origin}")
        exhibits = [Exhibit("", picture=a, reference=b) for a, b in zip(made, images, strict=True)]
        report.galleries.append(
            Gallery("documents-image-tokenizer", "Pictures reconstructed", note, tuple(exhibits[: SHOWN["image"]]))
        )
    if media["speech"] and "speech" in tokenizers:
        clips = list(media["speech"].values())
        made = reconstruct_speech(tokenizers["speech"], report, "documents.speech", clips, f"clips of {origin}")
        pairs = list(zip(clips, made, strict=True))[: SHOWN["speech"] // 2]
        exhibits = [
            Exhibit(title, sound=a) for pair in pairs for title, a in zip(("real", "reconstructed"), pair, strict=True)
        ]
        note = f"Each clip of {origin}, then its reconstruction by the tokenizer."
        report.galleries.append(Gallery("documents-speech-tokenizer", "Speech reconstructed", note, tuple(exhibits)))


# ------------------------------------------------------------------ answers


def _answer_of(document: Document) -> str | None:
    """The modality of the last segment, where that is the only target and not the only segment; else None."""
    *given, last = document.segments
    return last.modality if given and last.loss and not any(segment.loss for segment in given) else None


def _write(pipeline: Pipeline, protocol: Protocol, report: Report, asked: list[Document], origin: str) -> None:
    """Answers in text: how many are exactly the real one, and the word error rate."""
    wanted = [document.segments[-1].text.strip() for document in asked]
    outputs = ask(pipeline, [before_answer(document) for document in asked], "text", protocol, "documents")
    answers = [answer_text(output) for output in outputs]
    right = [answer == text for answer, text in zip(answers, wanted, strict=True)]
    how = protocol.describe(f"{len(asked)} documents of {origin} that end in a text")
    rate = float(np.mean(right))
    report.add(
        "documents.exact_match",
        rate,
        f"{how}; exact match of the whole text",
        reference=Counter(wanted).most_common(1)[0][1] / len(wanted),
        reference_name="the most frequent text",
        interval=interval(rate, len(right)),
    )
    _add_word_errors(report, answers, wanted, how)
    exhibits = [
        exhibit_of(document, answer, title=f"{given_words(document)} → {text}", mark=ok)
        for document, answer, text, ok in zip(asked, answers, wanted, right, strict=True)
    ]
    note = "The condition → the real text, then the text of the model."
    for name, title, heard in (("text", "Texts written", False), ("sounds", "Speech transcribed", True)):
        some = tuple(item for item in exhibits if (item.sound is not None) == heard)
        if some:
            report.galleries.append(Gallery(f"documents-{name}", title, note, some[: SHOWN["text"]]))


def _add_word_errors(report: Report, answers: list[str], wanted: list[str], how: str) -> None:
    missing = missing_packages(("jiwer",))
    if missing:
        report.leave_out("documents.wer", missing)
        return
    errors = [num_word_errors(answer, text) for answer, text in zip(answers, wanted, strict=True)]
    rate = mean_per_element(errors, [len(text.split()) for text in wanted])
    report.add("documents.wer", rate.value, f"{how}; word error rate", standard_error=rate.standard_error)
