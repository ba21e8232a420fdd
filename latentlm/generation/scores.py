"""What a model thinks of documents that exist, and the means over many of them.

Place in the flow: 4, made by `Pipeline.score`; training and evaluation take the means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..types import Document, Text


@dataclass(frozen=True)
class Scores:
    """What the model thinks of a document: nats of its text and of its span ends; by modality the mean loss of the
    latents that are targets, and their number: of a diffusion head the mean square error, of a mixture head nats."""

    text_nats: float
    num_text_tokens: int
    num_text_bytes: int
    end_nats: float = 0.0
    diffusion: dict[str, float] = field(default_factory=dict)
    num_latents: dict[str, int] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float:
        return self.text_nats / (math.log(2) * max(1, self.num_text_bytes))


def is_plain(document: Document) -> bool:
    """Whether it is text alone."""
    return all(isinstance(segment, Text) for segment in document.segments)


def bits_per_byte(scores: Iterable[Scores]) -> dict[str, float]:
    """Over all documents together; empty without bytes."""
    found = list(scores)
    num_bytes = sum(score.num_text_bytes for score in found)
    bits = sum(score.text_nats for score in found) / math.log(2)
    return {"bits per byte": bits / num_bytes} if num_bytes else {}


def mean_losses(scores: Iterable[Scores]) -> dict[str, float]:
    """Nats a token of text, and the loss a latent of each modality's head (`Head.unit`), over all documents together.

    Text counts where there is any to give: not the end of a document that is all picture.
    """
    sums, counts = Counter(), Counter()
    for score in scores:
        if score.num_text_bytes:
            sums["text"] += score.text_nats
            counts["text"] += score.num_text_tokens
        for name, loss in score.diffusion.items():
            sums[name] += loss * score.num_latents[name]
            counts[name] += score.num_latents[name]
    return {name: sums[name] / count for name, count in counts.items() if count}
