"""Losses of documents that a run never learns from: its signal beside samples, which no training loss can replace.

Place in the flow: 5, called with `SampleWriter` every `sample_every` steps, with the averaged weights. A few documents
of each kind, the same at every step with the same noise, so that only the model differs from one step to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..data.cache import LatentCache
from ..data.packing import DocumentEncoder
from ..generation.pipeline import Pipeline
from ..generation.scores import bits_per_byte, is_plain, mean_losses
from ..types import Document

NUM_DOCUMENTS = 40
"""About so many of one kind."""


def choose(
    kinds: Iterable[Sequence[Sequence[Document]]], cache: LatentCache, encoder: DocumentEncoder, limit: int
) -> list[Document]:
    """Of each kind some documents of every source, media as latents; none of more than `limit` positions."""
    chosen = []
    for sources in kinds:
        for documents in sources:
            every = math.ceil(len(documents) * len(sources) / NUM_DOCUMENTS)
            chosen += [cache.resolve(documents[i]) for i in range(0, len(documents), every)]
    return [document for document in chosen if len(encoder(document)) <= limit]


class HeldOut:
    """Bits per byte of the plain texts; of the other documents nats a token of text and the diffusion losses."""

    def __init__(self, pipeline: Pipeline, documents: Sequence[Document]):
        self.pipeline, self.documents = pipeline, documents

    def __call__(self) -> dict[str, float]:
        """Loss by name: "held-out bits per byte", "held-out text", "held-out image", "held-out speech"."""
        plain = [document for document in self.documents if is_plain(document)]
        losses = bits_per_byte(self.pipeline.score(document) for document in plain)
        losses |= mean_losses(self.pipeline.score(document) for document in self.documents if not is_plain(document))
        return {f"held-out {name}": value for name, value in losses.items()}
