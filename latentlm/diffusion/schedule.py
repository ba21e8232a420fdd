"""The noising process: the shares of signal and noise in a latent at time t (PAPER §1.2).

Place in the flow: the lowest module of `diffusion/`. Training draws times and adds noise with it; solvers read levels.
    x_t = α(t)·x0 + σ(t)·ε
    ddpm   t an integer 0..T-1; α = √ᾱ_t, σ = √(1 - ᾱ_t), ᾱ the cumulative product of 1 - β
             cosine: β_k = min(1 - ᾱ((k+1)/T) / ᾱ(k/T), 0.999), ᾱ(u) = cos²((u + 0.008)/1.008·π/2)
             linear: β from 1e-4 to 0.02 at T = 1000, scaled by 1000/T otherwise
    flow   t real in [0, T]; α = 1 - t/T, σ = t/T, velocity ε - x0
Legend: `C` latent channels; `T` number of timesteps; `...` any leading shape, the shape of t.
Numerics: tables are computed in fp64 and used in at least fp32. A `DiffusionProcess` is not a torch module, so that
casting a model to bf16 leaves its times and tables alone (in bf16, time 998.39 would be 1000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..config import DiffusionConfig
from ..errors import UserError

MAX_BETA = 0.999


@dataclass(frozen=True)
class Level:
    """A noise level: x = alpha·x0 + sigma·ε at network time `time`."""

    time: float
    alpha: float
    sigma: float


CLEAN = Level(time=0.0, alpha=1.0, sigma=0.0)
"""The last level of every solver: no noise. No network is evaluated there."""


@dataclass(frozen=True)
class DiffusionProcess:
    """A noising process and the kind of prediction. Hashable, so that solver plans can be cached by it.

    kind         "ddpm" or "flow"
    schedule     "cosine" or "linear"; ddpm only
    prediction   "v", "epsilon", "x0" or "velocity"
    """

    kind: str
    schedule: str
    prediction: str
    num_timesteps: int

    def __post_init__(self) -> None:
        """Make the tables now, so that compiled code only looks them up."""
        if self.kind == "ddpm":
            for name in ("alpha", "sigma"):
                _table(name, self.schedule, self.num_timesteps, torch.float64, torch.device("cpu"))

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> DiffusionProcess:
        """The process of a config. Flow matching always predicts the velocity and ignores `schedule`."""
        if config.num_timesteps < 2:
            raise UserError(f"diffusion.num_timesteps must be at least 2, got {config.num_timesteps}")
        if config.process == "flow":
            return cls("flow", "linear", "velocity", config.num_timesteps)
        return cls("ddpm", config.schedule, config.prediction, config.num_timesteps)

    def alpha(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Signal coefficient, the shape of t. ddpm: t integer; flow: t real."""
        if self.kind == "flow":
            return 1 - t.to(dtype) / self.num_timesteps
        return _table("alpha", self.schedule, self.num_timesteps, dtype, t.device)[self._index(t)]

    def sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Noise coefficient, the shape of t. ddpm: t integer; flow: t real."""
        if self.kind == "flow":
            return t.to(dtype) / self.num_timesteps
        return _table("sigma", self.schedule, self.num_timesteps, dtype, t.device)[self._index(t)]

    def level(self, time: float) -> Level:
        """The level at `time`, in fp64, for solvers. ddpm: σ/α is interpolated linearly between integer times."""
        assert 0 <= time <= self.num_timesteps, time
        if self.kind == "flow":
            sigma = time / self.num_timesteps
            return Level(time, 1 - sigma, sigma)
        alpha_bar = cumulative_alpha(self.schedule, self.num_timesteps)
        below = min(int(time), self.num_timesteps - 2)
        low, high = ((1 - alpha_bar[k]) / alpha_bar[k] for k in (below, below + 1))
        ratio = math.sqrt(low) + (math.sqrt(high) - math.sqrt(low)) * (time - below)
        alpha = 1 / math.hypot(1, ratio)
        return Level(time, alpha, ratio * alpha)

    def time(self, ratio: float) -> float:
        """The time at which σ/α is `ratio`, or the nearest time of the process; the inverse of `level`."""
        if self.kind == "flow":
            return self.num_timesteps * ratio / (1 + ratio)
        alpha_bar = np.array(cumulative_alpha(self.schedule, self.num_timesteps))
        return float(np.interp(ratio, np.sqrt((1 - alpha_bar) / alpha_bar), np.arange(self.num_timesteps)))

    def sample_timesteps(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str
    ) -> Tensor:
        """Independent random times for training; the generator must be on `device`.

        ddpm: uniform integers in 0..T-1, int64. flow: uniform reals in [0, T), fp32, for the continuous objective.
        """
        if self.kind == "flow":
            return torch.rand(shape, generator=generator, device=device, dtype=torch.float32) * self.num_timesteps
        return torch.randint(self.num_timesteps, shape, generator=generator, device=device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t (..., C) from x0 (..., C), noise (..., C) and t (...), in at least fp32 for inputs of any type."""
        dtype = working_dtype(x0)
        alpha, sigma = self.alpha(t, dtype)[..., None], self.sigma(t, dtype)[..., None]
        return alpha * x0.to(dtype) + sigma * noise.to(dtype)

    def _index(self, t: Tensor) -> Tensor:
        assert not t.is_floating_point(), "ddpm times are integers"
        return t


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype for computing with x: fp64 for fp64, else fp32; never half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=16)
def cumulative_alpha(schedule: str, num_timesteps: int) -> tuple[float, ...]:
    """ᾱ_t for t = 0..T-1, fp64."""
    T = num_timesteps

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    if schedule == "cosine":
        betas = [1 - alpha_bar((k + 1) / T) / alpha_bar(k / T) for k in range(T)]
    elif schedule == "linear":
        betas = [(1e-4 + (0.02 - 1e-4) * k / (T - 1)) * 1000 / T for k in range(T)]
    else:
        raise UserError(f"schedule {schedule!r} is unknown; known: cosine, linear")
    products, product = [], 1.0
    for beta in betas:
        product *= 1 - min(beta, MAX_BETA)
        products.append(product)
    return tuple(products)


_TABLES: dict[tuple, Tensor] = {}


def _table(name: str, schedule: str, num_timesteps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """√ᾱ ("alpha") or √(1 - ᾱ) ("sigma") for all t on a device (T,); cached.

    The cache is a dict, because torch.compile ignores `lru_cache` and would make the table again in every graph.
    """
    key = (name, schedule, num_timesteps, dtype, device)
    if key not in _TABLES:
        _TABLES[key] = _make_table(*key)
    return _TABLES[key]


@torch.inference_mode(False)  # a table first needed in inference mode may serve training later
def _make_table(name: str, schedule: str, num_timesteps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    cpu = torch.device("cpu")
    if (dtype, device) != (torch.float64, cpu):
        return _table(name, schedule, num_timesteps, torch.float64, cpu).to(dtype).to(device)
    alpha_bar = torch.tensor(cumulative_alpha(schedule, num_timesteps), dtype=dtype, device=cpu)
    return alpha_bar.sqrt() if name == "alpha" else (1 - alpha_bar).sqrt()
