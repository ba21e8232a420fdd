"""What a head is: it predicts the next latent of a span from a hidden state, and knows how it is trained and sampled.

Place in the flow: 3, hidden state ──▶ next latent. `LatentLM` asks a head for its loss, the engine for its sampler,
adapters for a probe; none of them looks inside. `heads/__init__.py` has the table of them.
Legend: `N` latents, `M` requests, `G` guided ones, `D` backbone width, `C` latent channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SamplerOptions:
    """How a request wants its latents sampled. Hashable: requests with equal options are sampled together.

    solver, steps: of the reverse diffusion. A head without one has no use for them.
    """

    solver: str
    steps: int


class Sampler(Protocol):
    """A head ready for inference with fixed options and weights; what these determine is computed once."""

    def __call__(
        self,
        hidden: Tensor,
        null_hidden: Tensor | None,
        guided: Tensor | None,
        scale: Tensor | None,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The next latents (M, C) fp32 of requests with hidden states (M, D).

        The requests `guided` (G,) long (None: all) have a null hidden state (G, D) and a guidance scale (G, 1) fp32
        each; null_hidden None: no request is guided, `guided` and `scale` are None too.
        generators: one per request. All its random numbers come from there, so its latent does not depend on the
        others.
        """
        ...


class Head(nn.Module, ABC):
    """Abstract. `latent_dim` is C; `unit` says what its loss is, per latent, in a report."""

    latent_dim: int
    unit: ClassVar[str]
    passes_per_latent: int = 1
    """Forward passes of the head per latent in a training step."""

    @abstractmethod
    def loss(self, hidden: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of latents `clean` (N, C) fp32 given hidden states (N, D): a sum over N, fp32, in
        `unit`."""

    @abstractmethod
    def sampler(self, options: SamplerOptions) -> Sampler:
        """The head for inference. Its weights must stay as they are while the sampler is in use."""

    @abstractmethod
    def initialise(self) -> None:
        """Draw the head's initial weights from torch's global generator."""

    @abstractmethod
    def probe(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) -> (N, C): a fixed function of the weights, which changes when the weights change."""


def draw_noise(shape: tuple[int, ...], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Standard normal numbers (M, *shape) on `device`, those of each request drawn by its own generator."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators]).to(device)
