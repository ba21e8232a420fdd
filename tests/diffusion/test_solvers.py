"""Solver plans: what they sample, how fast they converge, and that the loop is pure."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentlm.diffusion import SOLVERS, DiffusionProcess, make_plan, sample
from latentlm.diffusion.parametrization import conversion

COSINE = DiffusionProcess("ddpm", "cosine", "v", 1000)
LINEAR = DiffusionProcess("ddpm", "linear", "v", 1000)
FLOW = DiffusionProcess("flow", "linear", "velocity", 1000)
MEAN, STD = 0.7, 0.4
BOTH = pytest.mark.parametrize("process", [COSINE, FLOW], ids=["ddpm", "flow"])
EVERY = pytest.mark.parametrize("solver", SOLVERS)


class GaussianHead:
    """The perfect head for data N(MEAN, STD²): E[x0 | x] in closed form, said in the process's prediction."""

    def __init__(self, process: DiffusionProcess):
        self.process = process
        self.calls: list[tuple[float, torch.dtype]] = []

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.calls.append((t, x.dtype))
        level = self.process.level(t)
        alpha, sigma = level.alpha, level.sigma
        x0 = MEAN + STD**2 * alpha / ((alpha * STD) ** 2 + sigma**2) * (x - alpha * MEAN)
        if self.process.prediction == "x0":
            return x0
        linear = conversion("x0", self.process.prediction, alpha, sigma)
        return linear.of_x * x + linear.of_output * x0


def noise(num: int = 20_000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def gaussian_error(process: DiffusionProcess, solver: str, num_steps: int) -> float:
    """Distance from the exact solution of the ODE, which carries noise z to MEAN + STD·z."""
    z = noise(200, torch.float64)
    return (sample(make_plan(process, solver, num_steps), GaussianHead(process), z) - MEAN - STD * z).abs().max().item()


@pytest.mark.parametrize(
    ("process", "solver"),
    [(p, s) for p in (COSINE, LINEAR, FLOW) for s in SOLVERS if (p, s) != (COSINE, "heun")],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind}-{value.schedule}",
)
def test_gaussian_is_recovered(process, solver):
    """Mean and std of the data, from noise. (Heun on the cosine schedule: its own test.)"""
    x0 = sample(make_plan(process, solver, 200), GaussianHead(process), noise())
    assert x0.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert x0.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("prediction", ["v", "epsilon", "x0"])
@EVERY
def test_prediction_does_not_matter(solver, prediction):
    """A perfect head gives the same sample whatever it predicts: the folding is right for each."""
    process = DiffusionProcess("ddpm", "linear", prediction, 1000)
    z = noise(50, torch.float64)
    expected = sample(make_plan(LINEAR, solver, 8), GaussianHead(LINEAR), z)
    torch.testing.assert_close(sample(make_plan(process, solver, 8), GaussianHead(process), z), expected)


@pytest.mark.parametrize(
    ("process", "solver", "order"),
    [(FLOW, "euler", 1), (FLOW, "ddim", 1), (FLOW, "heun", 2), (COSINE, "ddim", 1), (COSINE, "euler", 1)],
    ids=lambda value: value.kind if isinstance(value, DiffusionProcess) else str(value),
)
def test_order_of_convergence(process, solver, order):
    """Twice the steps, 2^order times the accuracy."""
    rate = math.log2(gaussian_error(process, solver, 40) / gaussian_error(process, solver, 80))
    assert rate == pytest.approx(order, abs=0.15)


def test_second_order_pays_at_few_steps():
    """dpm++2m is second order where it matters; with many steps its last one, first order, sets the floor."""
    assert gaussian_error(COSINE, "dpm++2m", 20) < gaussian_error(COSINE, "dpm++2m", 5) / 4**2
    assert gaussian_error(COSINE, "dpm++2m", 20) < gaussian_error(COSINE, "ddim", 20) / 4
    assert gaussian_error(LINEAR, "dpm++2m", 40) < gaussian_error(LINEAR, "ddim", 40) / 4


@pytest.mark.parametrize("std", [4.0, 1.0, 0.25])
@BOTH
def test_stops_even_in_log_snr_keep_the_spread_of_wide_and_narrow_data(process, std):
    """Of data N(0, std²) dpm++2m keeps 92 to 100% of the std in 20 steps, by stops even in log(α/σ) 98 to 101%; in 10
    steps the latter still 96 to 103%."""

    def kept(solver: str, num_steps: int) -> float:
        def head(x: torch.Tensor, t: float) -> torch.Tensor:
            level = process.level(t)
            x0 = std**2 * level.alpha / ((level.alpha * std) ** 2 + level.sigma**2) * x
            linear = conversion("x0", process.prediction, level.alpha, level.sigma)
            return linear.of_x * x + linear.of_output * x0

        return sample(make_plan(process, solver, num_steps), head, torch.ones(1, 1, dtype=torch.float64)).item() / std

    assert kept("dpm++2m-logsnr", 20) == pytest.approx(1, abs=0.02)
    assert kept("dpm++2m-logsnr", 10) == pytest.approx(1, abs=0.04)
    if process is COSINE and std != 1:
        assert kept("dpm++2m", 20) < 0.96


@BOTH
def test_stops_even_in_log_snr(process):
    """From T-1, then even; where they end depends on their number. A schedule that is less wide bounds them."""
    ratios = [level.sigma / level.alpha for level in map(process.level, make_plan(process, "dpm++2m-logsnr", 21).times)]
    np.testing.assert_allclose(ratios[1:], np.geomspace(50, 1 / 21, 21)[1:], rtol=1e-5)
    assert make_plan(process, "dpm++2m-logsnr", 21).times[0] == 999
    last = process.level(make_plan(process, "dpm++2m-logsnr", 5).times[-1])
    assert last.sigma / last.alpha == pytest.approx(1 / 20)
    for num_timesteps in (2, 3, 10, 50):
        few = DiffusionProcess(process.kind, process.schedule, process.prediction, num_timesteps)
        for num_steps in range(1, num_timesteps):
            times = make_plan(few, "dpm++2m-logsnr", num_steps).times
            assert times[0] == num_timesteps - 1
            assert all(a > b for a, b in pairwise(times))


@BOTH
def test_a_time_is_found_by_its_level(process):
    for time in (1.0, 20.25, 500.0, 987.5):
        level = process.level(time)
        assert process.time(level.sigma / level.alpha) == pytest.approx(time, rel=1e-9)


def test_heun_needs_many_steps_on_the_cosine_schedule():
    """σ/α begins at 20,000 there, and the trapezoid of a step down from it is coarse. A property of the method in this
    space, shared with diffusers; docs/numerics.md says to use another solver."""
    assert gaussian_error(COSINE, "heun", 10) > 1
    assert gaussian_error(COSINE, "heun", 200) < 0.05


@BOTH
@EVERY
def test_evaluations_are_those_promised(process, solver):
    """n calls of the head (heun 2n - 1), falling times, the first at the noisiest stop."""
    head = GaussianHead(process)
    plan = make_plan(process, solver, 7)
    sample(plan, head, noise(2))
    times = [t for t, _ in head.calls]
    assert times == list(plan.times)
    assert len(times) == (13 if solver == "heun" else 7)
    assert times[0] >= 999
    assert sorted(times, reverse=True) == times
    assert len(set(times)) == 7


@BOTH
@EVERY
@pytest.mark.parametrize("num_steps", [1, 2, 999])
def test_extreme_numbers_of_steps(process, solver, num_steps):
    x0 = sample(make_plan(process, solver, num_steps), GaussianHead(process), noise(100))
    assert x0.isfinite().all()
    if num_steps == 1:  # one step is the head's first estimate
        assert len(make_plan(process, solver, 1).times) == 1
        torch.testing.assert_close(x0, torch.full_like(x0, MEAN), rtol=0, atol=0.01)


@BOTH
@EVERY
def test_times_survive_half_precision(process, solver):
    """The head sees fp32 samples and times that fp32 holds exactly, though noise and outputs are bf16."""
    head = GaussianHead(process)

    def half(x: torch.Tensor, t: float) -> torch.Tensor:
        return head(x, t).bfloat16()

    x0 = sample(make_plan(process, solver, 20), half, noise(50, torch.bfloat16))
    assert x0.dtype == torch.float32
    assert {dtype for _, dtype in head.calls} == {torch.float32}
    assert all(t == float(np.float32(t)) for t, _ in head.calls)
    assert any(t != float(torch.tensor(t).bfloat16()) for t, _ in head.calls)  # bf16 would have moved them


class Operations(TorchDispatchMode):
    """Names of the tensor operations that run."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@BOTH
@EVERY
def test_no_step_reads_the_device_back(process, solver):
    """Nothing but elementwise mul and add between head calls, at most five each: no copies, no scalars read, no sync.

    On the meta device, where a tensor has no values to read.
    """
    plan = make_plan(process, solver, 20)
    z = torch.empty(4, 8, device="meta")
    with Operations() as operations:
        x0 = sample(plan, lambda x, t: x, z)
    assert x0.is_meta
    assert set(operations.names) <= {"mul", "add"}
    limit = {"dpm++2m": 5, "dpm++2m-logsnr": 5, "heun": 3}.get(solver, 2)
    assert len(operations.names) <= limit * len(plan.times) + 1


@EVERY
def test_rows_do_not_depend_on_each_other(solver):
    plan, z = make_plan(COSINE, solver, 5), noise(16)
    together = sample(plan, GaussianHead(COSINE), z)
    alone = torch.cat([sample(plan, GaussianHead(COSINE), z[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(together, alone)


@EVERY
def test_inputs_are_left_alone(solver):
    """Neither the noise nor any x that the head was given changes afterwards: a head may keep what it saw."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    z = noise(10)
    kept = z.clone()

    def keep(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append((x, x.clone()))
        return x

    sample(make_plan(FLOW, solver, 5), keep, z)
    assert torch.equal(z, kept)
    assert all(torch.equal(x, before) for x, before in seen)


@EVERY
def test_gradient_flows_through(solver):
    """dx0/dz = STD for the exact ODE."""
    z = noise(4, torch.float64).requires_grad_()
    sample(make_plan(FLOW, solver, 100), GaussianHead(FLOW), z).sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z.grad, STD), rtol=0.05, atol=0)


def test_plans_are_values():
    plan = make_plan(COSINE, "dpm++2m", 5)
    assert plan == make_plan(DiffusionProcess("ddpm", "cosine", "v", 1000), "dpm++2m", 5)
    assert hash(plan) == hash(make_plan(COSINE, "dpm++2m", 5))
    assert plan.times == (999.0, 799.0, 599.0, 400.0, 200.0)
    assert make_plan(FLOW, "euler", 5).times == (1000.0, 750.25, 500.5, 250.75, 1.0)


def test_own_times():
    plan = make_plan(FLOW, "euler", 4, times=[1000, 750, 500, 250])
    assert plan.times == (1000.0, 750.0, 500.0, 250.0)
    x0 = sample(plan, lambda x, t: torch.ones_like(x), torch.zeros(1, 2))
    torch.testing.assert_close(x0, -torch.ones(1, 2))  # the whole way, σ from 1 to 0, at velocity 1
    pure = make_plan(FLOW, "dpm++2m", 4, times=[1000, 750, 500, 250])  # λ = -inf at the first stop
    assert sample(pure, GaussianHead(FLOW), noise(100)).std().item() == pytest.approx(STD, rel=0.3)


@pytest.mark.parametrize("times", [[999, 500], [999, 500, 500], [500, 999, 1], [1000, 500, 1], [999, 500, -1]])
def test_times_that_do_not_fit_are_refused(times):
    with pytest.raises(ValueError, match=r"times must be 3 falling numbers in 0\.\.999"):
        make_plan(COSINE, "ddim", 3, times=times)


def test_unknown_solver_is_named():
    with pytest.raises(ValueError, match=r"solver 'unipc' is unknown; known: dpm\+\+2m, dpm\+\+2m-logsnr, ddim"):
        make_plan(COSINE, "unipc", 5)


@pytest.mark.parametrize("num_steps", [0, -3, 1000])
def test_impossible_number_of_steps_is_named(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps must be in 1\.\.999, got {num_steps}"):
        make_plan(COSINE, "ddim", num_steps)
