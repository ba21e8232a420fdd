"""Solvers against the schedulers of diffusers, run as a pipeline runs them, with one nonlinear fake head.

Differences are relative to the largest entry of the reference. Two ways of running diffusers:
    double    its modules see float64 under the name float32, so that only formulas and stops are compared: 1e-9 where
              stops are integers; elsewhere our times are fp32, which moves a stop by 3e-8 of itself
    as it is  fp32 inside, whatever it is given. 1e-5 where the problem is well conditioned. Where it is not, the test
              says that we are no further from the double result than diffusers is:
                euler, heun on ddpm   diffusers carries x/α, up to 20,000 (cosine), and σ from 1 - ᾱ in fp32
                epsilon on cosine     x0 = (x - σ·ε)/α divides by α = 5e-5 at t = 999
Settings that make a scheduler comparable stand with each test.
"""

from __future__ import annotations

from types import ModuleType

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_dpmsolver_multistep,
    scheduling_euler_discrete,
    scheduling_flow_match_euler_discrete,
    scheduling_flow_match_heun_discrete,
    scheduling_heun_discrete,
)

from latentlm.diffusion import SOLVERS, DiffusionProcess, make_plan, sample

STEPS = (3, 5, 10, 20, 50)
BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon", "x0": "sample"}
OWN_STOPS = ("dpm++2m-logsnr",)
"""Solvers of diffusers at stops that it does not have: `test_stops_between_timesteps`."""
DIFFUSERS = [solver for solver in SOLVERS if solver not in OWN_STOPS]
DDPM_CASES = [(solver, schedule, p) for solver in DIFFUSERS for schedule in BETAS for p in PREDICTIONS]
WELL_CONDITIONED = [case for case in DDPM_CASES if case[0] in ("dpm++2m", "ddim") and case[1:] != ("cosine", "epsilon")]
ILL_CONDITIONED = [case for case in DDPM_CASES if case not in WELL_CONDITIONED]
FLOW = DiffusionProcess("flow", "linear", "velocity", 1000)
TOLERANCE = {"dpm++2m": 1e-9, "ddim": 1e-9, "euler": 1e-6, "heun": 1e-5}
REFERENCE = f"diffusers {diffusers.__version__}"
M, C = 16, 8


class FakeHead:
    """A smooth nonlinear estimate of x0 that mixes channels and depends on time, said in the process's prediction.

    Computed in fp64, so that what is compared is the solver. `times` are what it was asked for.
    """

    def __init__(self, process: DiffusionProcess):
        self.process = process
        self.mix = torch.randn(C, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / C**0.5
        self.times: list[float] = []

    def __call__(self, x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        t = float(t)
        self.times.append(t)
        level = self.process.level(t)
        y = x.double()
        x0 = torch.tanh(y @ self.mix + np.sin(t / 90)) + 0.3 * level.alpha * y
        if self.process.prediction == "x0":
            return x0.to(x.dtype)
        if self.process.kind == "ddpm" and self.process.prediction == "v":
            return ((level.alpha * y - x0) / level.sigma).to(x.dtype)
        epsilon = (y - level.alpha * x0) / level.sigma
        return (epsilon if self.process.kind == "ddpm" else epsilon - x0).to(x.dtype)


def noise(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(M, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


class Double:
    """A module in which float32 means float64."""

    def __init__(self, module: ModuleType):
        self.module = module
        self.float32 = module.float64

    def __getattr__(self, name: str):
        return getattr(self.module, name)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' schedulers in fp64 from the betas on."""
    for module in (
        scheduling_ddim,
        scheduling_dpmsolver_multistep,
        scheduling_euler_discrete,
        scheduling_flow_match_euler_discrete,
        scheduling_flow_match_heun_discrete,
        scheduling_heun_discrete,
    ):
        monkeypatch.setattr(module, "torch", Double(torch))
        monkeypatch.setattr(module, "np", Double(np))


def ddpm_scheduler(solver: str, process: DiffusionProcess):
    """dpm++2m: the defaults of DPMSolverMultistepScheduler are the authors' (dpmsolver++, order 2, midpoint, linspace,
    final σ zero). ddim: the same at order 1, since DDIMScheduler steps to t - T//n whatever its stops are (see below).
    Their linear betas are not scaled by 1000/T, ours are.
    """
    scale = 1000 / process.num_timesteps
    settings = {
        "num_train_timesteps": process.num_timesteps,
        "beta_schedule": BETAS[process.schedule],
        "beta_start": 1e-4 * scale,
        "beta_end": 0.02 * scale,
        "prediction_type": PREDICTIONS[process.prediction],
        "timestep_spacing": "linspace",
    }
    if solver == "dpm++2m":
        return DPMSolverMultistepScheduler(**settings)
    if solver == "ddim":
        return DPMSolverMultistepScheduler(**settings, solver_order=1)
    return {"euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}[solver](**settings)


def run_scheduler(scheduler, head: FakeHead, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The loop of a diffusers pipeline; the samples of k-diffusion schedulers are x/α, scaled back for the head."""
    scheduler.set_timesteps(num_steps)
    scaled = isinstance(scheduler, (EulerDiscreteScheduler, HeunDiscreteScheduler))
    x = x * scheduler.init_noise_sigma if scaled else x
    for t in scheduler.timesteps:
        output = head(scheduler.scale_model_input(x, t) if scaled else x, t)
        x = scheduler.step(output, t, x).prev_sample
    return x


def distance(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result.double() - reference.double()).abs().max() / reference.abs().max())


def both(
    process: DiffusionProcess, solver: str, scheduler, num_steps: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Our result and theirs, once the heads were asked for the same times."""
    ours, theirs = FakeHead(process), FakeHead(process)
    reference = run_scheduler(scheduler, theirs, noise(dtype), num_steps)
    result = sample(make_plan(process, solver, num_steps), ours, noise(dtype))
    np.testing.assert_allclose(ours.times, theirs.times, rtol=1e-6)
    return result, reference


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize(("solver", "schedule", "prediction"), DDPM_CASES)
def test_ddpm_formulas(double, agree, solver, schedule, prediction, num_steps):
    process = DiffusionProcess("ddpm", schedule, prediction, 1000)
    results = both(process, solver, ddpm_scheduler(solver, process), num_steps, torch.float64)
    agree(f"{solver} ddpm, fp64", *results, TOLERANCE[solver], REFERENCE, relative=True)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize(("solver", "schedule", "prediction"), WELL_CONDITIONED)
def test_ddpm_fp32(agree, solver, schedule, prediction, num_steps):
    process = DiffusionProcess("ddpm", schedule, prediction, 1000)
    results = both(process, solver, ddpm_scheduler(solver, process), num_steps, torch.float32)
    agree(f"{solver} ddpm, fp32", *results, 1e-5, REFERENCE, relative=True)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize(("solver", "schedule", "prediction"), ILL_CONDITIONED)
def test_ddpm_fp32_no_further_from_exact(solver, schedule, prediction, num_steps):
    process = DiffusionProcess("ddpm", schedule, prediction, 1000)
    plan = make_plan(process, solver, num_steps)
    exact = sample(plan, FakeHead(process), noise(torch.float64))
    ours = distance(sample(plan, FakeHead(process), noise()), exact)
    scheduler = ddpm_scheduler(solver, process)
    theirs = distance(run_scheduler(scheduler, FakeHead(process), noise(), num_steps), exact)
    assert ours <= max(1.5 * theirs, 1e-5)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETAS)
def test_ddim_scheduler(double, agree, schedule, prediction, num_steps):
    """DDIMScheduler steps from t to t - T//n, and to ᾱ = 1 below 0: that reaches its next stop for "trailing" where n
    divides T (900 here), not for "linspace". So: its trailing stops, our plan; no clipping.
    """
    process = DiffusionProcess("ddpm", schedule, prediction, 900)
    scheduler = DDIMScheduler(
        num_train_timesteps=900,
        beta_schedule=BETAS[schedule],
        beta_start=1e-4 * 1000 / 900,
        beta_end=0.02 * 1000 / 900,
        prediction_type=PREDICTIONS[prediction],
        timestep_spacing="trailing",
        clip_sample=False,
    )
    reference = run_scheduler(scheduler, FakeHead(process), noise(torch.float64), num_steps)
    plan = make_plan(process, "ddim", num_steps, times=scheduler.timesteps.tolist())
    result = sample(plan, FakeHead(process), noise(torch.float64))
    agree("ddim ddpm, trailing, fp64", result, reference, 1e-9, REFERENCE, relative=True)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_flow_match(agree, solver, num_steps):
    """The defaults of the flow matching schedulers: no shift, σ from 1 to 1/T, times T·σ."""
    scheduler = {"euler": FlowMatchEulerDiscreteScheduler, "heun": FlowMatchHeunDiscreteScheduler}[solver]()
    results = both(FLOW, solver, scheduler, num_steps, torch.float32)
    agree(f"{solver} flow, fp32", *results, 1e-5, REFERENCE, relative=True)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("solver", ["dpm++2m", "ddim"])
def test_flow_dpm_solver(agree, solver, num_steps):
    """use_flow_sigmas, flow_prediction. The scheduler cuts its times to integers; the head is shown T·σ instead."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_order=2 if solver == "dpm++2m" else 1,
    )
    scheduler.set_timesteps(num_steps)
    ours, theirs, reference = FakeHead(FLOW), FakeHead(FLOW), noise()
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        reference = scheduler.step(theirs(reference, float(sigma) * 1000), t, reference).prev_sample
    result = sample(make_plan(FLOW, solver, num_steps), ours, noise())
    np.testing.assert_allclose(ours.times, theirs.times, rtol=1e-6)
    agree(f"{solver} flow, fp32", result, reference, 1e-5, REFERENCE, relative=True)


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", BETAS)
def test_stops_between_timesteps(double, agree, schedule, prediction, num_steps):
    """dpm++2m-logsnr: dpm++2m of the scheduler, given our σ/α. Its times are integers, so the head is shown ours."""
    process = DiffusionProcess("ddpm", schedule, prediction, 1000)
    plan = make_plan(process, "dpm++2m-logsnr", num_steps)
    scheduler = ddpm_scheduler("dpm++2m", process)
    scheduler.set_timesteps(num_steps)
    levels = [process.level(time) for time in plan.times]
    scheduler.sigmas = torch.tensor([level.sigma / level.alpha for level in levels] + [0.0], dtype=torch.float64)
    head, reference = FakeHead(process), noise(torch.float64)
    for time, t in zip(plan.times, scheduler.timesteps, strict=True):
        reference = scheduler.step(head(reference, time), t, reference).prev_sample
    result = sample(plan, FakeHead(process), noise(torch.float64))
    agree("dpm++2m-logsnr ddpm, fp64", result, reference, 1e-9, REFERENCE, relative=True)
