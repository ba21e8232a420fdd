"""Pictures with class words: which words of a user's own data are classes, and the pictures of each.

Place in the flow: documents ──▶ labelled pictures ──▶ `classifier.py` and `drawn.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..data.task_source import Concatenated
from ..modalities.image import Image
from ..types import Document, Latents, Text

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MIN_PER_CLASS = 8
"""Fewest pictures of a class."""
MIN_COVERED = 0.9
"""Share of the held-out pictures whose words must be classes."""


@dataclass(frozen=True)
class LabelledPicture:
    """A picture, its text, and the document that they are from."""

    word: str
    picture: PILImage
    document: Document


@dataclass(frozen=True)
class ClassSplit:
    """Pictures that a classifier is trained on, and held-out pictures of the same classes."""

    classes: tuple[str, ...]
    train: tuple[LabelledPicture, ...]
    held_out: tuple[LabelledPicture, ...]


def labelled_picture(document: Document) -> LabelledPicture | None:
    """The picture of a document that is one text and one picture, in either order; else None."""
    texts = [segment.text.strip() for segment in document.segments if isinstance(segment, Text)]
    pictures = [segment.content for segment in document.segments if isinstance(segment, Image)]
    if len(document.segments) != 2 or len(texts) != 1 or len(pictures) != 1 or isinstance(pictures[0], Latents):
        return None
    return LabelledPicture(texts[0], pictures[0], document)


def split_classes(train: Sequence[LabelledPicture], held_out: Sequence[LabelledPicture]) -> ClassSplit | None:
    """Pictures to train and to test a classifier, if their words are classes; else None.

    Classes are the words with MIN_PER_CLASS or more pictures in `train`. There must be at least two, and MIN_COVERED of
    the pictures in `held_out` must have one. If not, one half of `held_out` is tried as `train`, and the other half is
    held out. None if that fails too: the words are descriptions, or there are too few pictures.
    """
    for learnt, kept in ((train, held_out), (held_out[1::2], held_out[::2])):
        counts = Counter(item.word for item in learnt)
        classes = tuple(sorted(word for word, count in counts.items() if count >= MIN_PER_CLASS))
        known = tuple(item for item in kept if item.word in classes)
        if len(classes) >= 2 and kept and len(known) >= MIN_COVERED * len(kept):
            return ClassSplit(classes, tuple(item for item in learnt if item.word in classes), known)
    return None


def spread(parts: Sequence[Sequence[Document]], num: int) -> list[Document]:
    """`num` documents of all `parts`, or all where there are fewer: in order, chosen at random by a fixed seed."""
    documents = Concatenated(parts)
    if len(documents) <= num:
        return list(documents)
    chosen = np.random.default_rng(0).choice(len(documents), num, replace=False)
    return [documents[index] for index in sorted(chosen.tolist())]
