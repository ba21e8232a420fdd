"""The records of the engine: a task with where it stands, the events it produces, the hidden states of one step.

Place in the flow: 4; `pipeline.py` makes tasks, `engine.py` works through them, `answers.py` reads their events.
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
"""Room beyond the prompt that a cache begins with, where only the model decides on the length; then it doubles."""


@dataclass(frozen=True)
class LatentInput:
    """A latent (C,) as the next input, and the features (F,) of its sound where there is a second tokenizer."""

    modality: str
    latent: Tensor
    features: Tensor | None = None


@dataclass(eq=False)
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
    handle: int | None = None  # given by `Engine.add`
    row: int | None = None  # cache row of the condition, from admission to the end
    null_row: int | None = None  # cache row of the guidance branch
    inputs: Tensor | None = None  # (L - 1, D), the embedded prompt but its last token, until it is in the cache
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
        """Cache rows that it needs."""
        return 1 + self.is_guided


@dataclass(frozen=True)
class Event:
    """Something that the task with handle `task` produced.

    kind: "token" (int), "latent" (C,), "open" or "close" of a span (the modality), after a latent "sound" (samples
    (k,)) where the modality has a second tokenizer, and last of all "finish" (the reason: "stop", "length" or
    "diverged").
    """

    task: int
    kind: str
    value: object


@dataclass(frozen=True)
class States:
    """Hidden states (R, D) of one step, found by task: `places` says where each cache row's lies."""

    hidden: Tensor
    places: dict[int, int]

    def of(self, tasks: Sequence[Task]) -> Tensor:
        return take(self.hidden, [self.places[task.row] for task in tasks])

    def null_of(self, tasks: Sequence[Task]) -> Tensor:
        return take(self.hidden, [self.places[task.null_row] for task in tasks])


def take(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of x, without a copy where they lie side by side."""
    if rows and rows == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[torch.tensor(rows, dtype=torch.int64, device=x.device)]


def expected_length(task: Task, spec: ModalitySpec | None) -> int:
    """Positions that a cache needs for it at first: of speech with a limit all that it can need."""
    lasts = spec is not None and spec.num_latents is None
    return len(task.prompt) + (task.max_latents if lasts and task.max_latents else GROWTH)


def check_length(task: Task, limit: int, spec: ModalitySpec | None) -> None:
    """UserError for a prompt past the context, or one that leaves no room for a whole image."""
    prompt = len(task.prompt)
    if prompt > limit:
        raise UserError(f"the prompt has {prompt} positions, the context is {limit}")
    if spec is not None and spec.num_latents and prompt + spec.num_latents - 1 > limit:
        raise UserError(
            f"the prompt has {prompt} positions and the {task.to} {spec.num_latents}, the context is {limit}"
        )
