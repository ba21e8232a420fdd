"""Losses of documents that were held out, and what the losses become under the condition of another document.

Place in the flow: documents ──▶ `Pipeline.score` ──▶ figures of the report. Each loss has its standard error, and the
gain by the right condition is measured document by document, so that a small difference can be told from noise. A model
that ignores its conditions gains nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from ..generation.pipeline import Pipeline
from ..generation.scores import Scores
from ..types import Document, Segment, Text
from .protocol import Protocol
from .report import Report
from .statistics import mean_per_element
from .text import uniform_bits


def score_texts(pipeline: Pipeline, protocol: Protocol, report: Report, texts: list[Document], origin: str) -> None:
    """Bits per byte of documents that are text alone."""
    scores = [pipeline.score(document, protocol.seed) for document in texts]
    num_bytes = [score.num_text_bytes for score in scores]
    if not sum(num_bytes):
        return
    bits = mean_per_element([score.text_nats / math.log(2) for score in scores], num_bytes)
    written = [s.text for document in texts for s in document.segments if isinstance(s, Text) and s.loss]
    report.add(
        "documents.bits_per_byte",
        bits.value,
        protocol.describe_scores(f"{len(texts)} texts of {origin}, ends included"),
        reference=uniform_bits(pipeline.tokenizers["text"], written) / sum(num_bytes),
        reference_name="every token equally likely",
        standard_error=bits.standard_error,
    )


def score_others(pipeline: Pipeline, protocol: Protocol, report: Report, others: list[Document], origin: str) -> None:
    """Losses by modality of documents with media, and the gain by their conditions."""
    swapped = with_conditions_of_others(others)
    scores = [pipeline.score(document, protocol.seed) for document in others]
    under_others = [pipeline.score(document, protocol.seed) for document in swapped]
    for name in ("text", *pipeline.model.modalities):
        chosen = [i for i, score in enumerate(scores) if _count(score, name)]
        if not chosen:
            continue
        counts = [_count(scores[i], name) for i in chosen]
        sums = [_loss(scores[i], name) for i in chosen]
        others_sums = [_loss(under_others[i], name) for i in chosen]
        unit = "nats per token" if name == "text" else pipeline.model.heads[name].unit
        how = protocol.describe_scores(f"{len(chosen)} documents of {origin} with {name} as a target; {unit}")
        loss, other = mean_per_element(sums, counts), mean_per_element(others_sums, counts)
        report.add(
            f"documents.{name}_loss",
            loss.value,
            how,
            reference=other.value,
            reference_name="under another document's condition",
            standard_error=loss.standard_error,
        )
        if any(swapped[i] is not others[i] for i in chosen):
            gain = mean_per_element([b - a for a, b in zip(sums, others_sums, strict=True)], counts)
            report.add(
                f"documents.{name}_condition_gain",
                gain.value,
                f"{how}; loss under another document's condition minus loss under its own, per document",
                reference=0.0,
                reference_name="a model that ignores its conditions",
                standard_error=gain.standard_error,
            )


def _count(score: Scores, name: str) -> int:
    """Elements of `name` that are targets; of text none where the only target is the end of the document."""
    if name == "text":
        return score.num_text_tokens if score.num_text_bytes else 0
    return score.num_latents.get(name, 0)


def _loss(score: Scores, name: str) -> float:
    """Sum of the loss over the elements of `name`."""
    return score.text_nats if name == "text" else score.diffusion[name] * score.num_latents[name]


def with_conditions_of_others(documents: Sequence[Document]) -> list[Document]:
    """Each document with the conditions of the next one that has the same modalities and other conditions; the document
    itself where there is none."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for index, document in enumerate(documents):
        alike[tuple((s.modality, s.condition) for s in document.segments)].append(index)
    swapped = list(documents)
    for group in alike.values():
        for place, index in enumerate(group):
            given = _content(documents[index])
            following = group[place + 1 :] + group[:place]
            other = next((documents[i] for i in following if _content(documents[i]) != given), None)
            if other is not None:
                conditions = iter([segment for segment in other.segments if segment.condition])
                segments = tuple(next(conditions) if s.condition else s for s in documents[index].segments)
                swapped[index] = documents[index].with_segments(segments)
    return swapped


def _content(document: Document) -> list[str | int]:
    """The conditions, to be compared: texts by their letters, media by identity."""
    conditions: list[Segment] = [segment for segment in document.segments if segment.condition]
    return [s.text if isinstance(s, Text) else id(s.content) for s in conditions]
