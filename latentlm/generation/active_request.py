"""The records of the engine: a request with its state, the events that it produces, the hidden states of one step.

Place in the flow: 4; `pipeline.py` makes requests, `engine.py` works through them, `answers.py` reads their events.
Legend: `C` latent channels, `D` width, `F` features, `R` rows of a step, `k` samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.packing import EncodedDocument
from ..errors import UserError
from ..model.latentlm import ModalitySpec
from ..tokenizers.streaming import FeatureStream

GROWTH = 128
"""Positions beyond the prompt in a new cache, where the model decides the length; a full cache doubles."""


@dataclass(frozen=True)
class LatentInput:
    """A latent (C,) as the next input, with the features (F,) of its sound where there is a second tokenizer."""

    modality: str
    latent: Tensor
    features: Tensor | None = None


@dataclass(eq=False)
class ActiveRequest:
    """A request inside the engine: its prompt, options and progress.

    to: "text", a modality, or "auto" (the model switches modality by itself until <EOS>).
    max_latents: most latents of a span of variable length; None: as many as the context holds.
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
    handle: int | None = None  # given by `Engine.add`
    row: int | None = None  # cache row of the condition, from admission on
    null_row: int | None = None  # cache row of the guidance branch
    inputs: Tensor | None = None  # (L - 1, D), embedded prompt without its last token, until it is in the cache
    mode: str = "text"
    pending: int | LatentInput = 0  # the next input: a token or a latent
    is_open: bool = False  # inside a span
    span_length: int = 0  # latents of the open span
    stream: FeatureStream | None = None  # of the open span
    num_tokens: int = 0
    num_latents: int = 0
    finish_reason: str | None = None  # "stop", "length", "diverged" or "cancelled"

    @property
    def is_guided(self) -> bool:
        return self.guidance != 1.0 and self.to != "text"

    @property
    def num_rows(self) -> int:
        """Cache rows that the request needs."""
        return 1 + self.is_guided


@dataclass(frozen=True)
class Event:
    """An event of the request `handle`, by kind and value.

    "token"         its id (int)
    "open", "close" a span begins or ends; its modality
    "latent"        (C,)
    "sound"         samples (k,) decoded from the preceding latent, where the modality has a second tokenizer
    "finish"        the last event; "stop", "length" or "diverged"
    """

    handle: int
    kind: str
    value: object


@dataclass(frozen=True)
class States:
    """Hidden states (R, D) of one step; `places` maps each cache row to its row of `hidden`."""

    hidden: Tensor
    places: dict[int, int]

    def of(self, requests: Sequence[ActiveRequest]) -> Tensor:
        return take(self.hidden, [self.places[request.row] for request in requests])

    def null_of(self, requests: Sequence[ActiveRequest]) -> Tensor:
        return take(self.hidden, [self.places[request.null_row] for request in requests])


def take(x: Tensor, rows: list[int]) -> Tensor:
    """The given rows of x; a view if they are contiguous."""
    if rows and rows == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[torch.tensor(rows, dtype=torch.int64, device=x.device)]


def expected_length(request: ActiveRequest, spec: ModalitySpec | None) -> int:
    """Cache positions to reserve for `request` at first; all that it can need if it has `max_latents`."""
    ends_itself = spec is not None and spec.num_latents is None
    return len(request.prompt) + (request.max_latents if ends_itself and request.max_latents else GROWTH)


def check_length(request: ActiveRequest, limit: int, spec: ModalitySpec | None) -> None:
    """Raise UserError for a prompt that is longer than the context, or leaves no room for a whole image."""
    prompt = len(request.prompt)
    if prompt > limit:
        raise UserError(f"the prompt has {prompt} positions, the context is {limit}")
    if spec is not None and spec.num_latents and prompt + spec.num_latents - 1 > limit:
        raise UserError(
            f"the prompt has {prompt} positions and the {request.to} {spec.num_latents}, the context is {limit}"
        )
