"""The predictions that a head may make (v, ε, x0, velocity) and conversions between them (PAPER §1.2).

Place in the flow: between the schedule and its two users, the training loss and the solvers.
Every prediction is a linear combination o = u·x0 + w·ε:
    x0        u =  1, w = 0
    epsilon   u =  0, w = 1
    v         u = -σ, w = α        (Salimans & Ho: v = α·ε - σ·x0)
    velocity  u = -1, w = 1        (flow matching: dx/dσ along x = (1-σ)·x0 + σ·ε)
With x = α·x0 + σ·ε, each can be computed from any other: a 2 × 2 system of determinant d = α·w - σ·u.
It is singular (d = 0) for epsilon at α = 0 and for x0 at σ = 0, levels at which no schedule here evaluates a head.
Legend: `C` latent channels; `...` the shape of t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from ..errors import UserError
from .schedule import DiffusionProcess, working_dtype

PREDICTIONS = ("v", "epsilon", "x0", "velocity")
Scalar = TypeVar("Scalar", float, Tensor)


@dataclass(frozen=True)
class Linear:
    """The linear function of_x·x + of_output·o; floats in solver plans, tensors in training."""

    of_x: float | Tensor
    of_output: float | Tensor


def mixture(prediction: str, alpha: Scalar, sigma: Scalar) -> tuple[Scalar | float, Scalar | float]:
    """The weights (u, w) of o = u·x0 + w·ε. Raises UserError for an unknown prediction."""
    if prediction == "v":
        return -sigma, alpha
    if prediction == "epsilon":
        return 0.0, 1.0
    if prediction == "x0":
        return 1.0, 0.0
    if prediction == "velocity":
        return -1.0, 1.0
    raise UserError(f"prediction {prediction!r} is unknown; known: {', '.join(PREDICTIONS)}")


def conversion(source: str, target: str, alpha: Scalar, sigma: Scalar) -> Linear:
    """The prediction `target` as a linear function of x and the prediction `source`, at one noise level."""
    u, w = mixture(source, alpha, sigma)
    to_u, to_w = mixture(target, alpha, sigma)
    determinant = alpha * w - sigma * u
    return Linear((to_u * w - to_w * u) / determinant, (alpha * to_w - sigma * to_u) / determinant)


def training_target(process: DiffusionProcess, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The target of the head's output for x0 (..., C), noise (..., C) and t (...): (..., C), at least fp32."""
    dtype = working_dtype(x0)
    alpha, sigma = process.alpha(t, dtype)[..., None], process.sigma(t, dtype)[..., None]
    u, w = mixture(process.prediction, alpha, sigma)
    return u * x0.to(dtype) + w * noise.to(dtype)


def convert(process: DiffusionProcess, output: Tensor, noisy: Tensor, t: Tensor, target: str) -> Tensor:
    """A head's output (..., C) for noisy (..., C) and t (...), converted to the prediction `target`: at least fp32.

    Raises UserError for an unknown `target`.
    """
    dtype = working_dtype(noisy)
    alpha, sigma = process.alpha(t, dtype)[..., None], process.sigma(t, dtype)[..., None]
    linear = conversion(process.prediction, target, alpha, sigma)
    return linear.of_x * noisy.to(dtype) + linear.of_output * output.to(dtype)


def to_x0(process: DiffusionProcess, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The clean latent that corresponds to an output, shapes as in `convert`."""
    return convert(process, output, noisy, t, "x0")


def to_epsilon(process: DiffusionProcess, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """The noise that corresponds to an output, shapes as in `convert`."""
    return convert(process, output, noisy, t, "epsilon")
