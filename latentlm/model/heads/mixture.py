"""The mixture head: the next latent's density as a mixture of Gaussians, all of it from one pass (GIVT, 2312.02116).

Place in the flow: 3, hidden state ──▶ next latent.
    p(x | h) = Σ_k π_k Π_c N(x_c; μ_kc, σ_kc²),   σ = min_scale + e^s;   log π, μ, s linear in an MLP of h
    loss       −log p(x | h), in nats per latent: not per channel, and it falls below zero where latents are narrow
    sampling   a component by its weight, then a draw from it, σ times `temperature`
    guidance   p(x | c)^s · p(x | ∅)^(1−s), by resampling: `num_candidates` draws from p(x | c), of which one is kept
               with probability proportional to (p(x | c) / p(x | ∅))^(s−1)
The guided density often has no finite integral (where p(x | ∅) falls faster than p(x | c)^(s/(s−1))), and no bound for
rejection sampling is known. Resampling is defined always; with more candidates it approaches the density where there
is one, and it never leaves what p(x | c) gives.
Legend: `N` latents or rows, `M` requests, `G` guided ones, `n` candidates, `K` components, `C` latent channels, `D`
backbone width, `W` head width.
Departures from GIVT: an MLP in front of the last linear map; σ through an exponential over a smooth floor; guidance on
the whole mixtures. Theirs takes the drawn component of p(x | c) and the one of the same number of p(x | ∅), channel by
channel, against a bound read off a grid, and keeps an unguided draw where 1,000 tries fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config import MixtureHeadConfig
from ..layers import RMSNorm, SwiGLU, draw_linear, ffn_width, in_tiles
from ..prepack import Packing
from .base import Head, SamplerOptions

MEANS_STD = 0.5
"""Spread of the components' means at the beginning. Equal components would stay equal: their gradients are."""


@dataclass(frozen=True)
class GaussianMixture:
    """Mixtures of diagonal Gaussians, fp32: log_weights (N, K) that sum to one, means and log_scales (N, K, C)."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def __getitem__(self, rows) -> GaussianMixture:
        return GaussianMixture(self.log_weights[rows], self.means[rows], self.log_scales[rows])

    def log_density(self, x: Tensor) -> Tensor:
        """Nats at x (N, ..., C), each row under its own mixture -> (N, ...)."""
        middle = (1,) * (x.dim() - 2)
        N, K, C = self.means.shape
        means, log_scales = (part.view(N, *middle, K, C) for part in (self.means, self.log_scales))
        distance = (x[..., None, :] - means) * (-log_scales).exp()  # (N, ..., K, C)
        parts = -0.5 * distance.square().sum(-1) - log_scales.sum(-1) - 0.5 * math.log(2 * math.pi) * C
        return torch.logsumexp(parts + self.log_weights.view(N, *middle, K), dim=-1)

    def draw(self, which: Tensor, noise: Tensor) -> Tensor:
        """Draws (N, n, C) from uniform numbers `which` (N, n) in [0, 1) and normal ones `noise` (N, n, C)."""
        component = pick(self.log_weights, which)[..., None].expand_as(noise)  # (N, n, C)
        return self.means.gather(1, component) + self.log_scales.exp().gather(1, component) * noise


def pick(log_weights: Tensor, which: Tensor) -> Tensor:
    """Numbers (N, n) of the entries of log_weights (N, K), not normalised, that uniform numbers (N, n) name."""
    edges = torch.softmax(log_weights, dim=-1).cumsum(-1)  # (N, K)
    return torch.searchsorted(edges, which * edges[:, -1:], right=True).clamp(max=log_weights.shape[-1] - 1)


class MixtureBlock(nn.Module):
    """x + SwiGLU(RMSNorm(x))."""

    def __init__(self, width: int, ffn: int, norm_eps: float):
        super().__init__()
        self.norm = RMSNorm(width, norm_eps, weight=False)
        self.ffn = SwiGLU(width, ffn)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


class MixtureHead(Head):
    """Its loss is in nats per latent."""

    def __init__(self, condition_width: int, latent_dim: int, config: MixtureHeadConfig):
        super().__init__()
        width = config.width or condition_width
        self.config = config
        self.latent_dim = latent_dim
        self.condition_norm = RMSNorm(condition_width, config.norm_eps, weight=False)
        self.condition_in = nn.Linear(condition_width, width, bias=False)
        ffn = config.ffn_width or ffn_width(width)
        self.blocks = nn.ModuleList(MixtureBlock(width, ffn, config.norm_eps) for _ in range(config.num_layers))
        self.norm = RMSNorm(width, config.norm_eps, weight=False)
        self.out = nn.Linear(width, config.components * (1 + 2 * latent_dim))

    def forward(self, hidden: Tensor) -> GaussianMixture:
        """hidden (N, D) -> the density of the latent that follows each."""
        x = self.condition_in(self.condition_norm(hidden))  # (N, W)
        for block in self.blocks:
            x = block(x)
        K, C = self.config.components, self.latent_dim
        logits, means, s = self.out(self.norm(x)).float().split((K, K * C, K * C), dim=-1)
        log_scales = torch.logaddexp(s, s.new_full((), math.log(self.config.min_scale)))  # log(min_scale + e^s)
        return GaussianMixture(
            torch.log_softmax(logits, dim=-1), means.unflatten(-1, (K, C)), log_scales.unflatten(-1, (K, C))
        )

    def loss(self, hidden: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Sum over the latents of the negative log-likelihood, nats. Draws nothing."""
        return -self(in_tiles(hidden))[: len(clean)].log_density(clean).sum()

    def sampler(self, options: SamplerOptions) -> MixtureSampler:
        """The head for inference. There is no solver and there are no steps: a latent takes one pass."""
        return MixtureSampler(self)

    def initialise(self) -> None:
        """Linear weights of std 1/√fan_in. The last layer has none at first: equal weights, σ of 1 + min_scale, means
        spread around 0, whatever the hidden state."""
        draw_linear(self)
        K, C = self.config.components, self.latent_dim
        nn.init.zeros_(self.out.weight)
        nn.init.normal_(self.out.bias[K : K + K * C], std=MEANS_STD)

    def probe(self, hidden: Tensor) -> Tensor:
        """The mean over components of μ + σ."""
        mixture = self(hidden)
        return (mixture.log_weights.exp()[..., None] * (mixture.means + mixture.log_scales.exp())).sum(1)


class MixtureSampler:
    """A mixture head for inference, its matrices laid out for the number of rows once that has come to stay."""

    def __init__(self, head: MixtureHead):
        self.network = Packing(head)
        self.widening = math.log(head.config.temperature)
        self.num_candidates, self.latent_dim = head.config.num_candidates, head.latent_dim

    def __call__(
        self,
        hidden: Tensor,
        null_hidden: Tensor | None,
        guided: Tensor | None,
        scale: Tensor | None,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Next latents (M, C) fp32, as `base.Sampler`; a scale of 1 gives a plain draw from the condition."""
        M = len(hidden)
        states = hidden if null_hidden is None else torch.cat((hidden, null_hidden))
        mixture = self.network(len(states))(states)
        mixture = GaussianMixture(mixture.log_weights, mixture.means, mixture.log_scales + self.widening)
        if null_hidden is None:
            return self._plain(mixture, generators)
        if guided is None:
            return self._guided(mixture[:M], mixture[M:], scale, generators)
        rows = guided.tolist()
        plain = [row for row in range(M) if row not in rows]
        latents = hidden.new_empty(M, self.latent_dim, dtype=torch.float32)
        if plain:
            latents[plain] = self._plain(mixture[plain], [generators[row] for row in plain])
        latents[rows] = self._guided(mixture[rows], mixture[M:], scale, [generators[row] for row in rows])
        return latents

    def _plain(self, mixture: GaussianMixture, generators: Sequence[torch.Generator]) -> Tensor:
        """(N, C)."""
        return mixture.draw(*self._random(1, generators, mixture.means.device))[:, 0]

    def _guided(
        self, c: GaussianMixture, u: GaussianMixture, scale: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """(G, C): of the candidates of each request the one that its last uniform number names."""
        n, device = self.num_candidates, c.means.device
        x = c.draw(*self._random(n, generators, device))  # (G, n, C)
        which = torch.stack([torch.rand(1, generator=g, device=g.device) for g in generators]).to(device)
        kept = pick((scale - 1) * (c.log_density(x) - u.log_density(x)), which)  # (G, 1)
        return x.gather(1, kept[..., None].expand(-1, 1, x.shape[-1]))[:, 0]

    def _random(self, n: int, generators: Sequence[torch.Generator], device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each request n uniform numbers and n times C normal ones: (N, n) and (N, n, C)."""
        drawn = [
            (
                torch.rand(n, generator=g, device=g.device),
                torch.randn(n, self.latent_dim, generator=g, device=g.device),
            )
            for g in generators
        ]
        which, noise = zip(*drawn, strict=True)
        return torch.stack(which).to(device), torch.stack(noise).to(device)
