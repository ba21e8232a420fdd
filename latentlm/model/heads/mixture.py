"""The mixture head: the density of the next latent as a mixture of Gaussians, in one pass (GIVT, arXiv 2312.02116).

Place in the flow: 3, hidden state ──▶ next latent.
    p(x | h) = Σ_k π_k Π_c N(x_c; μ_kc, σ_kc²),   σ = min_scale + e^s;   log π, μ, s linear in an MLP of h
    loss       −log p(x | h), in nats per latent (not per channel); negative where the density is above 1
    sampling   draw a component by its weight, then a latent from it, with σ multiplied by `temperature`
    guidance   samples from p(x | c) · P(c | x)^(s−1),  P(c | x) = p(x | c) / (p(x | c) + p(x | ∅)), by rejection:
               a draw from p(x | c) is kept with probability P(c | x)^(s−1), otherwise the next one is tried. For
               s < 1: a draw from p(x | c) with probability s, otherwise from p(x | ∅)
P(c | x) is the head's own probability that x was drawn with the condition. GIVT uses the ratio p(x | c) / p(x | ∅)
instead. The ratio is unbounded, and p(x | c) times its power often has no finite integral; where p(x | ∅) fits poorly,
it prefers latents that the null branch did not expect. P is at most 1, so rejection sampling is exact, and a draw is
kept with probability 2^(1−s) or more. If none of `num_candidates` draws is kept, the one with the highest P is taken:
for at most one latent in 10^16 at s = 3, in 10^7 at s = 4, in 50 at s = 6.
Legend: `N` latents or rows, `M` requests, `G` guided ones, `n` candidates, `K` components, `C` latent channels, `D`
backbone width, `W` head width.
Departures from GIVT: the guidance; an MLP in front of the last linear map; σ by an exponential over a smooth floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import MixtureHeadConfig
from ..layers import RMSNorm, SwiGLU, draw_linear, ffn_width, pad_rows
from ..prepack import Prepacker
from .base import Head, SamplerOptions

MEANS_STD = 1.0
"""Std of the components' initial means. Components that start equal stay equal, since their gradients are equal."""


@dataclass(frozen=True)
class GaussianMixture:
    """N mixtures of diagonal Gaussians, fp32: log_weights (N, K), whose exponentials sum to 1; means and log_scales
    (N, K, C)."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def __getitem__(self, rows) -> GaussianMixture:
        return GaussianMixture(self.log_weights[rows], self.means[rows], self.log_scales[rows])

    def where(self, mine: Tensor, other: GaussianMixture) -> GaussianMixture:
        """This mixture in the rows where `mine` (N, 1) is true, `other` in the other rows."""
        wide = mine[..., None]
        return GaussianMixture(
            torch.where(mine, self.log_weights, other.log_weights),
            torch.where(wide, self.means, other.means),
            torch.where(wide, self.log_scales, other.log_scales),
        )

    def log_density(self, x: Tensor) -> Tensor:
        """Log densities (N, ...) in nats at x (N, ..., C), each row under its own mixture."""
        middle = (1,) * (x.dim() - 2)
        N, K, C = self.means.shape
        means, log_scales = (part.view(N, *middle, K, C) for part in (self.means, self.log_scales))
        distance = (x[..., None, :] - means) * (-log_scales).exp()  # (N, ..., K, C)
        parts = -0.5 * distance.square().sum(-1) - log_scales.sum(-1) - 0.5 * math.log(2 * math.pi) * C
        return torch.logsumexp(parts + self.log_weights.view(N, *middle, K), dim=-1)

    def draw(self, chance: Tensor, noise: Tensor) -> Tensor:
        """Draws (N, n, C): uniform numbers `chance` (N, n) in [0, 1) choose components, `noise` (N, n, C) is normal."""
        edges = self.log_weights.exp().cumsum(-1)  # (N, K)
        component = torch.searchsorted(edges, chance * edges[:, -1:], right=True).clamp(max=edges.shape[1] - 1)
        place = component[..., None].expand_as(noise)  # (N, n, C)
        return self.means.gather(1, place) + self.log_scales.exp().gather(1, place) * noise


class MixtureBlock(nn.Module):
    """Residual block: x + SwiGLU(RMSNorm(x))."""

    def __init__(self, width: int, ffn: int, norm_eps: float):
        super().__init__()
        self.norm = RMSNorm(width, norm_eps, weight=False)
        self.ffn = SwiGLU(width, ffn)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


class MixtureHead(Head):
    """The mixture head; its loss is in nats per latent."""

    unit = "nats per latent"

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
        """The density of the next latent for each hidden state (N, D)."""
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
        """The sum over latents of the negative log-likelihood, in nats. Uses no random numbers."""
        return -self(pad_rows(hidden))[: len(clean)].log_density(clean).sum()

    def sampler(self, options: SamplerOptions) -> MixtureSampler:
        """The head for inference. A latent takes one pass: solver and steps have no effect."""
        return MixtureSampler(self)

    def initialise(self) -> None:
        """Draw linear weights with std 1/√fan_in; the last layer's are zero, and the biases of its means are random.

        At first the mixture does not depend on the hidden state: equal weights, σ = 1 + min_scale, means around 0.
        """
        draw_linear(self)
        K, C = self.config.components, self.latent_dim
        nn.init.zeros_(self.out.weight)
        nn.init.normal_(self.out.bias[K : K + K * C], std=MEANS_STD)

    def probe(self, hidden: Tensor) -> Tensor:
        """The mean over components of μ + σ."""
        mixture = self(hidden)
        return (mixture.log_weights.exp()[..., None] * (mixture.means + mixture.log_scales.exp())).sum(1)


class MixtureSampler:
    """A mixture head for inference, with prepacked copies for numbers of rows that recur."""

    def __init__(self, head: MixtureHead):
        self.network = Prepacker(head)
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
        """Next latents (M, C), fp32, as in `base.Sampler`; with scale 1 a latent is a plain draw."""
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
        """Draws (N, C) without guidance."""
        chance, noise = self._random(1, 1, generators, mixture.means.device)
        return mixture.draw(chance, noise)[:, 0]

    def _guided(
        self, c: GaussianMixture, u: GaussianMixture, scale: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Draws (G, C) with guidance: of each request the first kept candidate, else the one likeliest to be kept."""
        n = self.num_candidates
        chance, noise = self._random(1 + 2 * n, n, generators, c.means.device)
        branch, component, keep = chance.split((1, n, n), dim=1)
        x = c.where(branch < scale, u).draw(component, noise)  # (G, n, C)
        kept = (scale - 1).clamp(min=0) * F.logsigmoid(c.log_density(x) - u.log_density(x))  # log probability, (G, n)
        is_kept = keep < kept.exp()
        first = torch.where(is_kept.any(1), is_kept.int().argmax(1), kept.argmax(1))  # (G,)
        return x[torch.arange(len(x), device=x.device), first]

    def _random(
        self, num_uniform: int, num_latents: int, generators: Sequence[torch.Generator], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Uniform numbers in [0, 1) (N, num_uniform) and normal ones (N, num_latents, C), each request's by its own
        generator."""
        drawn = [
            (
                torch.rand(num_uniform, generator=g, device=g.device),
                torch.randn(num_latents, self.latent_dim, generator=g, device=g.device),
            )
            for g in generators
        ]
        uniform, normal = zip(*drawn, strict=True)
        return torch.stack(uniform).to(device), torch.stack(normal).to(device)
