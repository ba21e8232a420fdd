"""The network of the diffusion head: a small MLP with AdaLN-Zero on timestep and hidden state (PAPER §1.3).

Place in the flow: 3, used by `diffusion.py`, which trains and samples it. A pure function `(noisy, t, hidden) →
prediction`; the loop over timesteps is in `diffusion/solvers.py`.
Legend: `M` latents (times copies), `C` latent channels, `D` backbone width, `W` head width.
Departures from the authors' code: none by default; learned norm weights, and a hidden state without a second norm, are
options (PAPER §6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import DiffusionHeadConfig
from ..layers import RMSNorm, SwiGLU, ffn_width

NUM_FREQUENCIES = 256
MAX_PERIOD = 10000.0


class TimestepEmbedding(nn.Module):
    """Sinusoid (cos then sin, maximum period 10000) in fp32, then Linear, SiLU, Linear without biases."""

    def __init__(self, width: int):
        super().__init__()
        self.up = nn.Linear(NUM_FREQUENCIES, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps t (...) in 0..T-1 -> (..., W). fp32 up to the first linear layer: bf16 rounds 998.39 to 1000."""
        half = NUM_FREQUENCIES // 2
        frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=t.device, dtype=torch.float32))
        angles = t.float()[..., None] * frequencies
        sinusoid = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return self.down(F.silu(self.up(sinusoid.to(self.up.weight.dtype))))


class HeadBlock(nn.Module):
    """Residual block with AdaLN-Zero: x + gate · SwiGLU(RMSNorm(x)·(1 + scale) + shift)."""

    def __init__(self, width: int, ffn: int, config: DiffusionHeadConfig):
        super().__init__()
        self.norm = RMSNorm(width, config.norm_eps, config.norm_weight)
        self.ffn = SwiGLU(width, ffn)
        self.modulation = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.ffn(modulate(self.norm(x), shift, scale)))


class FinalLayer(nn.Module):
    """Linear(RMSNorm(x)·(1 + scale) + shift), zero at the start. The norm has no weight, as in the authors' code."""

    def __init__(self, width: int, latent_dim: int, config: DiffusionHeadConfig):
        super().__init__()
        self.norm = RMSNorm(width, config.norm_eps, weight=False)
        self.modulation = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, latent_dim, bias=False)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift."""
    return torch.addcmul(x + shift, x, scale)


class DiffusionNetwork(nn.Module):
    """Predicts v, ε, x0 or a velocity (`diffusion.prediction`) from a noisy latent, its timestep and a hidden state."""

    def __init__(self, condition_width: int, latent_dim: int, config: DiffusionHeadConfig):
        super().__init__()
        width = config.width or condition_width
        ffn = config.ffn_width or ffn_width(width)
        self.latent_dim = latent_dim
        norm = RMSNorm(condition_width, config.norm_eps, weight=False)
        self.condition_norm = norm if config.condition_norm else nn.Identity()
        self.condition_in = nn.Linear(condition_width, width, bias=False)
        self.timestep = TimestepEmbedding(width)
        self.latent_in = nn.Linear(latent_dim, width, bias=config.latent_bias)
        self.blocks = nn.ModuleList(HeadBlock(width, ffn, config) for _ in range(config.num_layers))
        self.final = FinalLayer(width, latent_dim, config)

    def condition(self, hidden: Tensor) -> Tensor:
        """The part of the conditioning that does not change between denoising steps: (M, D) -> (M, W)."""
        return self.condition_in(self.condition_norm(hidden))

    def modulations(self, conditioning: Tensor) -> list[Tensor]:
        """AdaLN modulations of every block (..., 3·W) and of the final layer (..., 2·W).

        conditioning (..., W): condition + timestep embedding. The modulations do not depend on the noisy latent, so
        `diffusion_sampler.py` computes those of many steps in one product.
        """
        c = F.silu(conditioning)
        return [layer.modulation(c) for layer in (*self.blocks, self.final)]

    def predict(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """The prediction (..., C) from x (..., W), which is `latent_in` of the noisy latent."""
        *blocks, final = modulations
        for block, modulation in zip(self.blocks, blocks, strict=True):
            x = block(x, modulation)
        return self.final(x, final)

    def denoise(self, noisy: Tensor, conditioning: Tensor) -> Tensor:
        """The prediction (..., C) from noisy (..., C) and conditioning (..., W) = condition + timestep embedding."""
        return self.predict(self.latent_in(noisy), self.modulations(conditioning))

    def forward(self, noisy: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        """The prediction (M, C) from noisy (M, C), t (M,) in 0..T-1 and hidden (M, D)."""
        return self.denoise(noisy, self.condition(hidden) + self.timestep(t))
