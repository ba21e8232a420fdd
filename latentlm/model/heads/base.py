"""The interface of a head: it predicts the next latent of a span from a hidden state.

Place in the flow: 3, hidden state ──▶ next latent. `LatentLM` uses a head's loss, the engine its sampler, adapters its
probe; none of them uses its internals. `heads/__init__.py` lists the heads.
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
    """How the latents of a request are sampled. Hashable: requests with equal options are sampled together.

    solver, steps: of the reverse diffusion; heads without diffusion ignore them.
    """

    solver: str
    steps: int


class Sampler(Protocol):
    """A head for inference with fixed options and weights; what depends on these alone is computed once."""

    def __call__(
        self,
        hidden: Tensor,
        null_hidden: Tensor | None,
        guided: Tensor | None,
        scale: Tensor | None,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The next latents (M, C) fp32 of requests with hidden states (M, D).

        guided (G,), long: the indices of the requests with guidance; None: all. Each has a null hidden state
        (G, D) and a guidance scale (G, 1), fp32. Without any guidance all three are None.
        generators: one per request; a request draws all its random numbers from its own, so that its latent does not
        depend on the other requests.
        """
        ...


class Head(nn.Module, ABC):
    """Abstract base class. `latent_dim` is C; `unit` names the loss per latent in reports."""

    latent_dim: int
    unit: ClassVar[str]
    passes_per_latent: int = 1
    """Forward passes of the head per latent in a training step."""

    @abstractmethod
    def loss(self, hidden: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of latents `clean` (N, C), fp32, given hidden states (N, D): the sum over N, fp32, in `unit`."""

    @abstractmethod
    def sampler(self, options: SamplerOptions) -> Sampler:
        """The head for inference. Its weights must not change while the sampler is in use."""

    @abstractmethod
    def initialise(self) -> None:
        """Draw the head's initial weights from torch's global generator."""

    @abstractmethod
    def probe(self, hidden: Tensor) -> Tensor:
        """A deterministic output (N, C) for hidden states (N, D), which changes whenever the weights change."""


def draw_noise(shape: tuple[int, ...], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Standard normal numbers (M, *shape) on `device`; each request's are drawn by its own generator."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators]).to(device)
