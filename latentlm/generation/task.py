"""What the engine is given and what it gives: requests with where they stand, and events.

Place in the flow: 4, made by `generate.py`, worked through by `engine.py`.
Legend: `C` latent channels, `F` features, `k` samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.packing import EncodedDocument
from ..model.latentlm import ModalitySpec
from ..tokenizers.streaming import FeatureStream

GROWTH = 128
"""Room beyond the prompt that a cache begins with, where only the model decides on the length; then it doubles."""


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
    solver: str
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


def expected_length(task: Task, spec: ModalitySpec | None) -> int:
    """Positions that the cache begins with: of speech with a limit all that it can need."""
    lasts = spec is not None and spec.num_latents is None
    return len(task.prompt) + (task.max_latents if lasts and task.max_latents else GROWTH)


def check_length(task: Task, limit: int, spec: ModalitySpec | None) -> None:
    """ValueError for a prompt past the context, or one that leaves no room for a whole image."""
    prompt = len(task.prompt)
    if prompt > limit:
        raise ValueError(f"the prompt has {prompt} positions, the context is {limit}")
    if spec is not None and spec.num_latents and prompt + spec.num_latents - 1 > limit:
        raise ValueError(
            f"the prompt has {prompt} positions and the {task.to} {spec.num_latents}, the context is {limit}"
        )
