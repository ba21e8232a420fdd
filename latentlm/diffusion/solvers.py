"""Solvers of the reverse process as precomputed plans: noise ──▶ latent in a few head evaluations (PAPER §1.4).

Place in the flow: `make_plan` once per (process, solver, number of steps); `sample` for every latent.
A solver has two variables, the sample x and a memory m. Every solver here is linear in them and in the head's output o,
so that an evaluation is a few floats, computed beforehand in fp64 from schedule and parametrisation:
    o = predict(x, t);   x, m = x_of_x·x + x_of_output·o + x_of_memory·m,   memory.of_x·x + memory.of_output·o
        dpm++2m, dpm++2m-logsnr   m is the previous estimate of x0       ddim, euler   no memory
        heun                      two evaluations per step; m is the sample that the first one started from
Legend: `M` latents, `C` latent channels, `n` steps, `T` timesteps of the process.
Times, falling, followed by σ = 0 (diffusers calls all but the second "linspace"):
    dpm++2m, ddim   linspace(0, T-1, n+1) without 0, rounded for ddpm
    dpm++2m-logsnr  n times even in log(α/σ), from σ/α = 50 to min(1/n, 1/20); T-1 instead of the first
    euler, heun     ddpm: linspace(0, T-1, n), the ODE solved in σ/α as k-diffusion does; flow: linspace(1, T, n)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ..config import Solver
from ..errors import UserError
from .parametrization import Linear, conversion
from .schedule import CLEAN, DiffusionProcess, Level, working_dtype

SOLVERS = get_args(Solver)
NOISIEST, CLEANEST = 50.0, 1 / 20
"""Range of σ/α that matters for latents of about unit variance: above it is only noise, below it little noise."""
Predict = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """One call of the head at network time `time` (exact in fp32), and the update of x and m after it."""

    time: float
    x_of_x: float
    x_of_output: float
    x_of_memory: float = 0.0
    memory: Linear | None = None


@dataclass(frozen=True)
class Plan:
    """A solver for one process and number of steps: start with noise·noise_scale, then the evaluations in order."""

    solver: str
    num_steps: int
    noise_scale: float
    evaluations: tuple[Evaluation, ...]

    @property
    def times(self) -> tuple[float, ...]:
        """Network time of every evaluation, in order (heun evaluates most of them twice)."""
        return tuple(evaluation.time for evaluation in self.evaluations)


def sample(plan: Plan, predict: Predict, noise: Tensor) -> Tensor:
    """noise (M, C) -> latents (M, C), fp32 (fp64 for fp64 noise).

    predict(x (M, C), t) -> (M, C) is the head's raw output with guidance; its x is not changed later.
    """
    x = noise.to(working_dtype(noise)) * plan.noise_scale
    memory = x
    for step in plan.evaluations:
        output = predict(x, step.time).to(x.dtype)
        following = _combine(x, output, step.x_of_x, step.x_of_output)
        if step.x_of_memory:
            following = following.add(memory, alpha=step.x_of_memory)
        if step.memory is not None:
            memory = _combine(x, output, step.memory.of_x, step.memory.of_output)
        x = following
    return x


def make_plan(process: DiffusionProcess, name: str, num_steps: int, times: Sequence[float] | None = None) -> Plan:
    """The plan of solver `name` with `num_steps` steps, at the falling `times` if given, else at the solver's own.

    Raises UserError for an unknown solver, for num_steps outside 1..T-1, and for times that do not fit.
    """
    if name not in SOLVERS:
        raise UserError(f"solver {name!r} is unknown; known: {', '.join(SOLVERS)}")
    if not 1 <= num_steps < process.num_timesteps:
        raise UserError(f"num_steps must be in 1..{process.num_timesteps - 1}, got {num_steps}")
    times = solver_times(process, name, num_steps) if times is None else _checked(process, num_steps, times)
    levels = [*(process.level(time) for time in times), CLEAN]
    build = _BUILDERS[name]
    starts_at_level = name in ("euler", "heun")  # k-diffusion starts from pure noise of σ_max, not of variance 1
    return Plan(name, num_steps, levels[0].sigma if starts_at_level else 1.0, build(process, levels))


def solver_times(process: DiffusionProcess, name: str, num_steps: int) -> list[float]:
    """The falling network times of a solver's steps, exact in fp32."""
    last = process.num_timesteps - 1
    if name == "dpm++2m-logsnr":
        times = _even_in_log_snr(process, num_steps)
    elif name in ("dpm++2m", "ddim"):
        times = np.linspace(0, last, num_steps + 1)[:0:-1]
        times = times.round() if process.kind == "ddpm" else times
    elif process.kind == "ddpm":
        times = np.linspace(last, 0, num_steps)  # one step: the noisiest time
    else:
        times = np.linspace(process.num_timesteps, 1, num_steps)
    return [float(time) for time in times.astype(np.float32)]


def _even_in_log_snr(process: DiffusionProcess, num_steps: int) -> np.ndarray:
    """The times of `dpm++2m-logsnr`, even in log(α/σ); see docs/numerics.md."""
    last, first = process.level(process.num_timesteps - 1), process.level(0)
    noisiest = min(NOISIEST, last.sigma / last.alpha)
    cleanest = max(min(CLEANEST, 1 / num_steps), first.sigma / first.alpha)
    times = [process.time(ratio) for ratio in np.geomspace(noisiest, cleanest, num_steps)]
    return np.array([last.time, *times[1:]])


def _checked(process: DiffusionProcess, num_steps: int, times: Sequence[float]) -> list[float]:
    times = [float(np.float32(time)) for time in times]
    low, high = (0, process.num_timesteps - 1) if process.kind == "ddpm" else (0, process.num_timesteps)
    inside = all(low <= time <= high for time in times) and (process.kind == "ddpm" or 0.0 not in times)
    if len(times) != num_steps or not inside or any(a <= b for a, b in pairwise(times)):
        raise UserError(f"times must be {num_steps} falling numbers in {low}..{high}, got {times}")
    return times


def _first_order(process: DiffusionProcess, levels: list[Level]) -> tuple[Evaluation, ...]:
    """DDIM, which is also Euler in σ/α and, for flow, Euler in σ: x' = α'·x0 + σ'·ε."""
    return tuple(_ddim_step(process, here, there) for here, there in pairwise(levels))


def _ddim_step(process: DiffusionProcess, here: Level, there: Level) -> Evaluation:
    x0 = conversion(process.prediction, "x0", here.alpha, here.sigma)
    epsilon = conversion(process.prediction, "epsilon", here.alpha, here.sigma)
    return Evaluation(
        here.time,
        x_of_x=there.alpha * x0.of_x + there.sigma * epsilon.of_x,
        x_of_output=there.alpha * x0.of_output + there.sigma * epsilon.of_output,
    )


def _dpm_solver(process: DiffusionProcess, levels: list[Level]) -> tuple[Evaluation, ...]:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2), λ = log(α/σ), h = λ' - λ, r = h_previous / h:

        x' = (σ'/σ)·x - α'(e^{-h} - 1)·((1 + 1/2r)·x0 - (1/2r)·x0_previous)

    First order where there is no previous estimate, and on the last step, whose h is infinite: there x' = x0.
    """
    plan = []
    for i, (here, there) in enumerate(pairwise(levels)):
        x0 = conversion(process.prediction, "x0", here.alpha, here.sigma)
        first = _ddim_step(process, here, there)
        if there is CLEAN:
            plan.append(first)
            continue
        extrapolation = 0.0
        if i > 0:
            extrapolation = (_log_snr(there) - _log_snr(here)) / (_log_snr(here) - _log_snr(levels[i - 1])) / 2
        weight = (there.alpha - there.sigma * here.alpha / here.sigma) * extrapolation  # of x0 - x0_previous
        step = replace(
            first,
            x_of_x=first.x_of_x + weight * x0.of_x,
            x_of_output=first.x_of_output + weight * x0.of_output,
            x_of_memory=-weight,
            memory=x0,
        )
        plan.append(step)
    return tuple(plan)


def _heun(process: DiffusionProcess, levels: list[Level]) -> tuple[Evaluation, ...]:
    """Heun's trapezoid: an Euler step, then the mean of the two slopes. The last step, to σ = 0, is Euler alone.

    The slope is ε in σ/α for ddpm (y = x/α) and the velocity in σ for flow (y = x). With ỹ the Euler step,
    y' = (y + ỹ)/2 + (τ' - τ)/2·slope(ỹ), so the first slope need not be kept: memory is x.
    """
    plan = []
    for here, there in pairwise(levels):
        euler = _ddim_step(process, here, there)
        if there is CLEAN:
            plan.append(euler)
            continue
        if process.kind == "ddpm":
            slope = conversion(process.prediction, "epsilon", there.alpha, there.sigma)
            length = there.alpha * (there.sigma / there.alpha - here.sigma / here.alpha)
            carry = there.alpha / here.alpha
        else:
            slope = conversion(process.prediction, "velocity", there.alpha, there.sigma)
            length = there.sigma - here.sigma
            carry = 1.0
        corrector = Evaluation(
            there.time,
            x_of_x=0.5 + 0.5 * length * slope.of_x,
            x_of_output=0.5 * length * slope.of_output,
            x_of_memory=0.5 * carry,
        )
        plan += [replace(euler, memory=Linear(1.0, 0.0)), corrector]
    return tuple(plan)


_BUILDERS: dict[Solver, Callable[[DiffusionProcess, list[Level]], tuple[Evaluation, ...]]] = {
    "dpm++2m": _dpm_solver,
    "dpm++2m-logsnr": _dpm_solver,
    "ddim": _first_order,
    "euler": _first_order,
    "heun": _heun,
}


def _log_snr(level: Level) -> float:
    """λ = log(α/σ); -inf at pure noise, which makes the extrapolation from there zero."""
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


def _combine(x: Tensor, output: Tensor, of_x: float, of_output: float) -> Tensor:
    """of_x·x + of_output·output in at most two elementwise operations."""
    if of_output == 0.0:
        return x if of_x == 1.0 else x * of_x
    if of_x == 0.0:
        return output if of_output == 1.0 else output * of_output
    return torch.add(x if of_x == 1.0 else x * of_x, output, alpha=of_output)
