"""Pictures drawn for the conditions of a user's own held-out documents.

Place in the flow: pipeline ──▶ pictures ──▶ figures and gallery of the report. Where the conditions are class words, a
classifier trained for the report (`classifier.py`) says which class was drawn, and the Fréchet distance in its features
compares the drawings with held-out pictures. Other conditions have no judge: their drawings are only shown.
Legend: `B` pictures, `F` features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..generation.pipeline import Pipeline
from ..types import Document
from .classes import ClassSplit, LabelledPicture, labelled_picture, split_classes, spread
from .classifier import PictureClassifier, to_pixels, train_classifier
from .exhibits import exhibit_of
from .frechet import compare_balanced
from .protocol import Protocol, answer_media, ask, before_answer
from .report import Gallery, Report, interval

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SHOWN = 24
MIN_FRECHET_SIZE = 16
"""Fewest pictures on each side of a Fréchet distance."""
CHUNK = 64


@dataclass(frozen=True)
class Judged:
    """Pictures as a classifier sees them: the classes they should show (B,), those it sees (B,), features (B, F)."""

    labels: Tensor
    seen: Tensor
    features: Tensor

    @property
    def right(self) -> list[bool]:
        return (self.labels == self.seen).tolist()

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.right))


def evaluate_drawn(
    pipeline: Pipeline,
    protocol: Protocol,
    report: Report,
    asked: Sequence[Document],
    training: Sequence[Sequence[Document]],
    origin: str,
) -> None:
    """Draw the pictures of the documents `asked`, which end in one; judge them where their texts are class words.

    training: the model's own training documents with pictures, from which the classifier learns; may be empty.
    """
    learnt, held_out = (
        [item for item in map(labelled_picture, documents) if item is not None]
        for documents in (spread(training, protocol.counts.judge_pictures), asked)
    )
    split = split_classes(learnt, held_out)
    if split is None:
        reason = "the texts are not class words, or too few pictures have the same text"
        report.leave_out("documents.image_class_accuracy", reason)
        shown = list(asked[:SHOWN])
        _add_gallery(protocol, report, shown, _draw(pipeline, protocol, shown), [("", None)] * len(shown), origin)
        return
    chosen = spread([[item.document for item in split.held_out]], protocol.counts.drawn)
    drawn = _draw(pipeline, protocol, chosen)
    judged, real = _judge(pipeline, protocol, split, chosen, drawn)
    _add_accuracy(protocol, report, split, judged, real, origin)
    _add_frechet(protocol, report, judged, real, origin)
    marks = [
        ("" if right else f"seen as {split.classes[seen]}", right)
        for right, seen in zip(judged.right, judged.seen.tolist(), strict=True)
    ]
    _add_gallery(protocol, report, chosen, drawn, marks, origin)


def _draw(pipeline: Pipeline, protocol: Protocol, asked: Sequence[Document]) -> list[PILImage]:
    prompts = [before_answer(document) for document in asked]
    return [answer_media(output) for output in ask(pipeline, prompts, "image", protocol, "documents")]


def _judge(
    pipeline: Pipeline, protocol: Protocol, split: ClassSplit, asked: Sequence[Document], drawn: Sequence[PILImage]
) -> tuple[Judged, Judged]:
    """The drawn pictures and the real held-out ones, as a classifier of the training pictures sees them."""
    number = {word: index for index, word in enumerate(split.classes)}

    def labels(items: Sequence[LabelledPicture]) -> Tensor:
        return torch.tensor([number[item.word] for item in items])

    train, real = (_fitted(pipeline, [item.picture for item in items]) for items in (split.train, split.held_out))
    classifier = train_classifier(train, labels(split.train), len(number), protocol.seed)
    prompted = [item for item in map(labelled_picture, asked) if item is not None]
    return (
        _judged(classifier, to_pixels(drawn), labels(prompted)),
        _judged(classifier, real, labels(split.held_out)),
    )


def _judged(classifier: PictureClassifier, pixels: Tensor, labels: Tensor) -> Judged:
    return Judged(labels, classifier.classify(pixels), classifier.features(pixels))


def _fitted(pipeline: Pipeline, pictures: Sequence[PILImage]) -> Tensor:
    """Real pictures for the classifier, (B, 3, S, S), fitted to a square as the tokenizer fits them."""
    tokenizer = pipeline.tokenizers["image"]
    parts = []
    for start in range(0, len(pictures), CHUNK):
        batch = tokenizer.batch(list(pictures[start : start + CHUNK]))
        parts.append(to_pixels(tokenizer.unbatch(batch.media, [0] * len(batch.media))))
    return torch.cat(parts)


def _add_accuracy(
    protocol: Protocol, report: Report, split: ClassSplit, judged: Judged, real: Judged, origin: str
) -> None:
    num = len(judged.labels)
    judge = f"small CNN trained for this report on {len(split.train)} real pictures of the {len(split.classes)} classes"
    report.add(
        "documents.image_class_accuracy",
        judged.accuracy,
        protocol.describe(f"{num} pictures drawn for class words of {origin}, classified by a {judge}", "documents"),
        reference=real.accuracy,
        reference_name="real held-out pictures",
        interval=interval(judged.accuracy, num),
    )
    report.add(
        "documents.image_judge_accuracy",
        real.accuracy,
        f"{judge}; {len(real.labels)} real held-out pictures of {origin}; seed {protocol.seed}",
        reference=Counter(real.labels.tolist()).most_common(1)[0][1] / len(real.labels),
        reference_name="the most frequent class",
        interval=interval(real.accuracy, len(real.labels)),
    )


def _add_frechet(protocol: Protocol, report: Report, judged: Judged, real: Judged, origin: str) -> None:
    possible = min(len(judged.labels), len(real.labels) // 2)
    if possible < MIN_FRECHET_SIZE:
        reason = f"it needs {MIN_FRECHET_SIZE} drawn and {2 * MIN_FRECHET_SIZE} real held-out pictures of class words"
        report.leave_out("documents.image_frechet_ratio", reason)
        return
    labels, real_labels, balance = judged.labels, real.labels, "classes balanced"
    num_classes = int(real_labels.max()) + 1
    per_class = min(
        int(torch.bincount(labels, minlength=num_classes).min()),
        int(torch.bincount(real_labels, minlength=num_classes).min()) // 2,
    )
    if per_class * num_classes < max(MIN_FRECHET_SIZE, possible // 2):  # balancing would leave out too many pictures
        labels, real_labels, balance = torch.zeros_like(labels), torch.zeros_like(real_labels), "classes not balanced"
    draws, seed = protocol.counts.draws, protocol.seed
    found = compare_balanced(judged.features, labels, real.features, real_labels, draws, seed)
    how = protocol.describe(
        f"pictures drawn for class words of {origin}; Fréchet distance in the classifier's penultimate features, mean "
        f"of {draws} random draws of {found.size} against {found.size} held-out pictures, {balance}",
        "documents",
    )
    report.add(
        "documents.image_frechet_ratio",
        found.ratio,
        f"{how}; divided by the distance of disjoint halves of the real pictures, same draws and sizes",
        reference=1.0,
        reference_name="real against real",
    )
    report.add(
        "documents.image_frechet",
        found.distance,
        f"{how}; standard deviation {found.deviation:.2g}",
        reference=found.real_distance,
        reference_name="real against real",
    )


def _add_gallery(
    protocol: Protocol,
    report: Report,
    asked: Sequence[Document],
    drawn: Sequence[PILImage],
    marks: Sequence[tuple[str, bool | None]],
    origin: str,
) -> None:
    """The first SHOWN drawings beside the real pictures; marks: a remark on each, and whether it is right."""
    exhibits = [
        exhibit_of(document, text, mark=mark, picture=picture, reference=document.segments[-1].content)
        for document, picture, (text, mark) in zip(asked, drawn, marks, strict=True)
    ]
    note = protocol.describe(f"Left a picture of {origin}, right the drawing for its condition", "documents") + "."
    report.galleries.append(Gallery("documents-image", "Pictures drawn", note, tuple(exhibits[:SHOWN])))
