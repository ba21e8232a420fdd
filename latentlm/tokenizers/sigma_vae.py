"""σ-VAE: the posterior of a continuous tokenizer, its noise and its prior term (PAPER §1.7).

Place in the flow: between encoder and decoder of `image.py` and `speech.py`.

    μ = Enc(x);   z = μ + n·(C_σ·std(μ))·ε;   n ~ N(0, 1) one per example, ε ~ N(0, I);   x̂ = Dec(z)

Departures: the paper gives no unit and no value for C_σ. Here it is a standard deviation *relative to std(μ)*, because
this ratio is what the language model sees after normalisation (an absolute 0.5 on latents of std 5 is only 0.1). n may
be negative, which changes nothing: ε is symmetric.

The effect of β. The noise scales with the spread of μ, so the encoder cannot raise the signal-to-noise ratio by a
larger μ, and β cannot lower it, as it does where σ is absolute. The scale of μ is free; β·mean(μ²) only keeps μ centred
and bounded. With scalar normalisation all channels have the same noise level and share one total variance; with
`per_channel` the noise of each channel is C_σ times its own spread.

Legend: `B` examples, `N` latents, `C` latent channels, `P` parameters (C, or 2C for "learned": μ and log σ²).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import PosteriorConfig
from ..errors import UserError
from ..types import perturb

MOMENTUM = 0.1
"""Weight of the newest batch in the running mean and std of μ; 1/k in the first ten batches."""

LOG_VARIANCE = (-30.0, 20.0)
"""Bounds of the learned log σ², as in latent diffusion; exp stays finite in fp32."""


class Posterior(nn.Module):
    """Draws z from the posterior that the encoder predicts, and computes the prior term of each example."""

    def __init__(self, config: PosteriorConfig, latent_dim: int, per_channel: bool):
        super().__init__()
        self.config = config
        self.num_parameters = 2 * latent_dim if config.kind == "learned" else latent_dim
        self.per_channel = per_channel
        # std(μ) over recent batches, the unit of C_σ in training, equal in all processes. It has no gradient, which
        # would reward a small spread. After training, `calibrate` measures the final scale.
        shape = (latent_dim,) if per_channel else ()
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_std", torch.ones(shape))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long))

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        """Parameters (B, N, P) -> μ (B, N, C), and σ (B, N, C) where it is learned, else None."""
        if self.config.kind != "learned":
            return parameters, None
        mean, log_variance = parameters.chunk(2, dim=-1)
        return mean, (0.5 * log_variance.clamp(*LOG_VARIANCE)).exp()

    def spread(self, like: Tensor) -> Tensor:
        """The std of the noise on normalised latents, C_σ for "sigma" and 0 for "none"; dtype and device as `like`."""
        return like.new_tensor(self.config.c_sigma if self.config.kind == "sigma" else 0.0)

    def forward(self, parameters: Tensor, valid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """parameters (B, N, P), valid (B, N) bool -> z (B, N, C), zero where invalid, and the prior term (B,).

        In training with several processes it is a collective operation.
        """
        mean, std = self.split(parameters)
        scale = self._track(mean.detach(), valid) if self.training else self.running_std
        z, penalty, level = mean, mean.square(), 1.0
        if self.config.kind != "none":
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            if self.config.kind == "sigma":
                n = torch.randn((len(mean), 1, 1), generator=generator, device=mean.device, dtype=mean.dtype)
                level = n * self.config.c_sigma
            z = perturb(mean, level, scale if std is None else std, noise)
        if std is not None:
            penalty = 0.5 * (penalty + std.square() - 1 - 2 * std.log())
        z = z * valid[..., None]
        prior = (penalty.mean(-1) * valid).sum(-1) / valid.sum(-1).clamp(min=1)
        return z, prior

    def _track(self, mean: Tensor, valid: Tensor) -> Tensor:
        """Update the running moments with this batch's valid μ (B, N, C); returns the running std for its noise.

        The batches of several processes are taken in order of rank, each with the running std after its own update, so
        that one process that sees them in this order gets the same numbers.
        """
        weight = valid[..., None].to(mean.dtype).expand_as(mean)
        dims = (0, 1) if self.per_channel else (0, 1, 2)
        total = weight.sum(dims).clamp(min=1)
        centre = (mean * weight).sum(dims) / total
        std = (((mean - centre) * weight).square().sum(dims) / total).sqrt()
        rank, moments = _of_all_ranks(torch.stack((centre, std)))
        given = self.running_std
        for number, (centre, std) in enumerate(moments):
            self.num_batches += 1
            step = (1.0 / self.num_batches).clamp(min=MOMENTUM)
            self.running_mean.lerp_(centre, step)
            self.running_std.lerp_(std, step)
            if number == rank:
                given = self.running_std.clone()
        return given


def _of_all_ranks(value: Tensor) -> tuple[int, list[Tensor]]:
    """The rank of this process, and `value` of every rank in order."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, [value]
    values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(values, value)
    return dist.get_rank(), values


class RunningMoments:
    """Mean and std over batches of vectors (n, C), exact in fp64 (Chan's update of Welford's algorithm)."""

    def __init__(self, per_channel: bool):
        self.per_channel = per_channel
        self.count = 0  # vectors seen
        self._weight = 0  # values behind each statistic: `count`, or `count`·C when all channels share one
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def update(self, values: Tensor) -> None:
        """Add the vectors (n, C)."""
        if len(values) == 0:
            return
        self.count += len(values)
        values = values.double() if self.per_channel else values.double().reshape(-1, 1)
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self._mean is None:
            self._weight, self._mean, self._squares = len(values), mean, squares
            return
        total = self._weight + len(values)
        difference = mean - self._mean
        self._mean = self._mean + difference * (len(values) / total)
        self._squares = self._squares + squares + difference.square() * (self._weight * len(values) / total)
        self._weight = total

    def result(self) -> tuple[Tensor, Tensor]:
        """mean and (population) std, () or (C,), fp64. Raises UserError where nothing was added."""
        if self._mean is None:
            raise UserError("calibration got no valid latents: the batches are empty")
        mean, std = self._mean, (self._squares / self._weight).sqrt()
        return (mean, std) if self.per_channel else (mean[0], std[0])
