"""What the engine is given and what it gives: requests with where they stand, and events.

Place in the flow: 4, made by `generate.py`, worked through by `engine.py`.
Legend: `C` latent channels, `F` features, `k` samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.packing import EncodedDocument
from ..tokenizers.streaming import FeatureStream


@dataclass(frozen=True)
class Heard:
    """A latent (C,) as the next input, and the features (F,) of its sound where there is a second tokenizer."""

    modality: str
    latent: Tensor
    features: Tensor | None = None


@dataclass
class Task:
    """One request inside the engine: what it asks for, and where it stands.

    `to` is "text", a modality, or "auto": then the model switches modality by itself until <EOS>.
    max_latents: of a span of variable length; None: whatever the context holds.
    """

    prompt: EncodedDocument
    to: str
    guidance: float
    steps: int
    solver: str | None
    temperature: float
    max_tokens: int
    max_latents: int | None
    generator: torch.Generator
    mode: str = "text"
    pending: int | Heard = 0  # the next input: a token or a latent
    is_open: bool = False  # inside a span
    span_length: int = 0  # latents of the open span
    stream: FeatureStream | None = None  # of the open span
    num_tokens: int = 0
    num_latents: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class Event:
    """Something that request `task` produced: kind "token" (int), "latent" (C,), "open" or "close" (the modality), and
    after a latent "sound" (samples (k,)) where the modality has a second tokenizer."""

    task: int
    kind: str
    value: object
