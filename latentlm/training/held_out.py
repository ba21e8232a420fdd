"""Losses on held-out documents and media, which a run never trains on.

Place in the flow: 5, computed every `sample_every` steps with the averaged weights, beside the samples. The documents
and the noise are the same at every step, so that differences between steps come from the model alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..config import MediaConfig
from ..data.cache import LatentCache
from ..data.examples import EXAMPLES
from ..data.loader import collate_media
from ..data.packing import DocumentEncoder
from ..generation.pipeline import Pipeline
from ..generation.scores import bits_per_byte, is_plain, mean_losses
from ..tokenizers.base import Tokenizer
from ..types import Document

NUM_DOCUMENTS = 40
"""About how many documents of each kind, or media of a tokenizer, are scored."""
BATCH = 8
"""Media of a tokenizer per batch."""


def choose(
    kinds: Iterable[Sequence[Sequence[Document]]], cache: LatentCache, encoder: DocumentEncoder, limit: int
) -> list[Document]:
    """About NUM_DOCUMENTS documents of each kind, from every source, with media as latents; those of more than `limit`
    positions are left out."""
    chosen = []
    for sources in kinds:
        for documents in sources:
            every = math.ceil(len(documents) * len(sources) / NUM_DOCUMENTS)
            chosen += [cache.resolve(documents[i]) for i in range(0, len(documents), every)]
    return [document for document in chosen if len(encoder(document)) <= limit]


class HeldOut:
    """Scores documents: bits per byte of plain texts; of the others, nats per token of text and losses of the heads."""

    def __init__(self, pipeline: Pipeline, documents: Sequence[Document]):
        self.pipeline, self.documents = pipeline, documents

    def __call__(self) -> dict[str, float]:
        """Losses by name: "held-out bits per byte", "held-out text", "held-out image", "held-out speech"."""
        plain = [document for document in self.documents if is_plain(document)]
        losses = bits_per_byte(self.pipeline.score(document) for document in plain)
        losses |= mean_losses(self.pipeline.score(document) for document in self.documents if not is_plain(document))
        return {f"held-out {name}": value for name, value in losses.items()}


class HeldOutMedia:
    """Scores a tokenizer on held-out media, by the losses of its training without their weights."""

    def __init__(self, config: MediaConfig, tokenizer: Tokenizer, sources: Sequence[Sequence]):
        """sources: the held-out media by source, any of which may be empty."""
        plain = config.model_copy(update={"flip": False, "crop": 0.0, "gain": 0.0})
        prepare = EXAMPLES[tokenizer.modality](tokenizer.config, plain, False)
        rng = np.random.default_rng(0)
        self.examples = [prepare(medium, rng) for source in sources for medium in _spread(source, len(sources))]

    def __call__(self, tokenizer: Tokenizer) -> dict[str, float]:
        """Mean loss by name: "held-out mse", "held-out mel", …; nothing if there are no held-out media."""
        device, sums = tokenizer.latent_mean.device, Counter()
        generator = torch.Generator(device).manual_seed(0)
        for start in range(0, len(self.examples), BATCH):
            batch = collate_media(self.examples[start : start + BATCH]).to(device)
            sums.update({name: value.item() for name, value in tokenizer(batch, generator).items()})
        return {f"held-out {name}": value / len(self.examples) for name, value in sums.items()}


def _spread(media: Sequence, num_sources: int) -> list:
    """About NUM_DOCUMENTS / num_sources of the media, evenly spread."""
    every = max(1, math.ceil(len(media) * num_sources / NUM_DOCUMENTS))
    return [media[place] for place in range(0, len(media), every)]
