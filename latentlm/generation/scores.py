"""Losses of a model on given documents, and their means over many documents.

Place in the flow: 4; `Pipeline.score` makes `Scores`, training and evaluation average them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..data.packing import DocumentEncoder, pack
from ..errors import UserError
from ..model.latentlm import LatentLM
from ..types import IGNORE, Document, Text


@dataclass(frozen=True)
class Scores:
    """The losses of one document.

    text_nats, end_nats: negative log-likelihood, summed over the text targets and over the ends of spans.
    diffusion: modality -> mean loss per latent that is a target: mean squared error for a diffusion head, nats for a
        mixture head. num_latents: modality -> number of those latents.
    """

    text_nats: float
    num_text_tokens: int
    num_text_bytes: int
    end_nats: float = 0.0
    diffusion: dict[str, float] = field(default_factory=dict)
    num_latents: dict[str, int] = field(default_factory=dict)

    @property
    def bits_per_byte(self) -> float:
        return self.text_nats / (math.log(2) * max(1, self.num_text_bytes))


@torch.inference_mode()
def score_document(model: LatentLM, encoder: DocumentEncoder, document: Document, seed: int) -> Scores:
    """The scores of a document whose media are latents. UserError if it is longer than the context."""
    encoded = encoder(document)
    limit = model.config.transformer.context_length
    if len(encoded) > limit:
        raise UserError(f"the document has {len(encoded)} positions, the context is {limit}")
    dims = {name: spec.latent_dim for name, spec in model.modalities.items()}
    batch = pack([encoded], dims, torch.Generator().manual_seed(seed)).to(model.embed_tokens.weight.device)
    sums = model(batch, torch.Generator(batch.ids.device).manual_seed(seed + 1))
    counts = batch.target_counts()
    return Scores(
        text_nats=float(sums["text"]),
        num_text_tokens=int((batch.text_targets != IGNORE).sum()),
        num_text_bytes=sum(len(s.text.encode()) for s in document.segments if isinstance(s, Text) and s.loss),
        end_nats=float(sums["end"]),
        diffusion={name: float(sums[name]) / counts[name] for name in dims if counts[name]},
        num_latents={name: counts[name] for name in dims if counts[name]},
    )


def is_plain(document: Document) -> bool:
    """Whether the document holds nothing but text."""
    return all(isinstance(segment, Text) for segment in document.segments)


def bits_per_byte(scores: Iterable[Scores]) -> dict[str, float]:
    """{"bits per byte": …} over all documents together; empty if they hold no text."""
    found = list(scores)
    num_bytes = sum(score.num_text_bytes for score in found)
    bits = sum(score.text_nats for score in found) / math.log(2)
    return {"bits per byte": bits / num_bytes} if num_bytes else {}


def mean_losses(scores: Iterable[Scores]) -> dict[str, float]:
    """Nats per text token, and the loss per latent of each modality (unit: `Head.unit`), over all documents together.

    Documents without text targets do not count for the text, although the end of each is a text target too.
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
