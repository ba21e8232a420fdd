"""The heads, which predict the next latent of a span. `base.py` defines a head, `build_head` makes one.

diffusion   the paper's: an MLP that denoises, run once per solver step       (PAPER §1.3)
mixture     GIVT's: a mixture of Gaussians, one pass per latent               (arXiv 2312.02116)
"""

from __future__ import annotations

from collections.abc import Callable

from ...config import DiffusionConfig, HeadConfig
from .base import Head, Sampler, SamplerOptions
from .diffusion import DiffusionHead
from .mixture import MixtureHead

HEADS: dict[str, Callable[[int, int, HeadConfig, DiffusionConfig], Head]] = {
    "diffusion": DiffusionHead,
    "mixture": lambda width, latent_dim, config, diffusion: MixtureHead(width, latent_dim, config),
}
"""The class of a head by `model.head.kind`, called with (backbone width, latent channels, config, diffusion config)."""


def build_head(width: int, latent_dim: int, config: HeadConfig, diffusion: DiffusionConfig) -> Head:
    """A head of `config.kind` on a backbone of `width` for latents of `latent_dim` channels, not yet initialised."""
    return HEADS[config.kind](width, latent_dim, config, diffusion)


__all__ = ["HEADS", "DiffusionHead", "Head", "MixtureHead", "Sampler", "SamplerOptions", "build_head"]
