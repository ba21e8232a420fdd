"""The diffusion head: its loss and initialisation around the network of `diffusion_network.py` (PAPER §1.2, §1.3).

Place in the flow: 3, hidden state ──▶ next latent.
    loss   E_{t, ε} ‖target − network(x_t, t, h)‖², several t per latent                       (Eq. 3)
Legend: `N` latents, `K` timesteps per latent, `D` backbone width, `C` latent channels, `W` head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from ...config import DiffusionConfig, DiffusionHeadConfig
from ...diffusion.parametrization import training_target
from ...diffusion.schedule import DiffusionProcess
from ...diffusion.solvers import Plan, make_plan
from ..layers import draw_linear, pad_rows
from .base import Head, SamplerOptions
from .diffusion_network import DiffusionNetwork
from .diffusion_sampler import DiffusionSampler


class DiffusionHead(DiffusionNetwork, Head):
    """The denoising network with its diffusion process. Its loss is a mean squared error."""

    unit = "diffusion loss per latent, timesteps and noise as in training"

    def __init__(self, condition_width: int, latent_dim: int, config: DiffusionHeadConfig, diffusion: DiffusionConfig):
        super().__init__(condition_width, latent_dim, config)
        self.process = DiffusionProcess.from_config(diffusion)
        self.timesteps_per_latent = self.passes_per_latent = diffusion.timesteps_per_latent

    def loss(self, hidden: Tensor, clean: Tensor, generator: torch.Generator) -> Tensor:
        """The sum over latents of the mean squared error over their K noisy copies and their channels."""
        N, C = clean.shape
        K = self.timesteps_per_latent
        clean = clean[:, None].expand(N, K, C)
        t = self.process.sample_timesteps((N, K), generator, clean.device)
        noise = torch.randn((N, K, C), generator=generator, device=clean.device)
        noisy = self.process.add_noise(clean, noise, t)
        conditioning = self.condition(pad_rows(hidden))[:, None] + self.timestep(pad_rows(t))  # (N or more, K, W)
        prediction = self.denoise(pad_rows(noisy.to(conditioning.dtype)), conditioning)[:N].float()
        target = training_target(self.process, clean, noise, t)
        return (prediction - target).square().mean((1, 2)).sum()

    def sampler(self, options: SamplerOptions) -> DiffusionSampler:
        """The head with a solver. Raises UserError for an unknown solver."""
        return DiffusionSampler(self, cached_plan(self.process, options.solver, options.steps))

    def initialise(self) -> None:
        """Draw linear weights with std 1/√fan_in; AdaLN modulations and the last layer are zero, so it predicts 0."""
        draw_linear(self)
        for layer in [block.modulation for block in self.blocks] + [self.final.modulation, self.final.out]:
            nn.init.zeros_(layer.weight)

    def probe(self, hidden: Tensor) -> Tensor:
        """The prediction for a latent of ones at timestep 500."""
        N = len(hidden)
        return self(hidden.new_ones(N, self.latent_dim), torch.full((N,), 500.0, device=hidden.device), hidden)


@lru_cache(maxsize=64)
def cached_plan(process: DiffusionProcess, solver: str, num_steps: int) -> Plan:
    return make_plan(process, solver, num_steps)
