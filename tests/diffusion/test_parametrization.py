"""Predictions turn into each other without loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.diffusion import DiffusionProcess, convert, to_epsilon, to_x0, training_target
from latentlm.diffusion.parametrization import PREDICTIONS, conversion, mixture

PROCESSES = [
    DiffusionProcess("ddpm", schedule, p, 1000) for schedule in ("cosine", "linear") for p in ("v", "epsilon", "x0")
]
PROCESSES.append(DiffusionProcess("flow", "linear", "velocity", 1000))
processes = st.sampled_from(PROCESSES)
angles = st.floats(0.05, 1.5)  # α = cos, σ = sin


def example(process: DiffusionProcess, seed: int, dtype: torch.dtype = torch.float64):
    """x0, noise (N, K, C), t (N, K) away from pure noise and from no noise, x (N, K, C)."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 5, 4, 8, generator=generator, dtype=torch.float64)
    t = process.sample_timesteps((5, 4), generator, "cpu").clamp(1, 999)
    x0, noise = x0.to(dtype), noise.to(dtype)
    return x0, noise, t, process.add_noise(x0, noise, t)


@settings(max_examples=60, deadline=None)
@given(processes, st.integers(0, 2**31))
def test_target_implies_clean_and_noise(process, seed):
    x0, noise, t, x = example(process, seed)
    target = training_target(process, x0, noise, t)
    torch.testing.assert_close(to_x0(process, target, x, t), x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(to_epsilon(process, target, x, t), noise, rtol=1e-7, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PREDICTIONS), st.sampled_from(PREDICTIONS), angles, st.floats(-3, 3), st.floats(-3, 3))
def test_conversions_round_trip(source, target, angle, x, output):
    """There and back, at any level, for any output, consistent with x or not."""
    alpha, sigma = torch.tensor(angle).cos().item(), torch.tensor(angle).sin().item()
    there = conversion(source, target, alpha, sigma)
    back = conversion(target, source, alpha, sigma)
    converted = there.of_x * x + there.of_output * output
    assert back.of_x * x + back.of_output * converted == pytest.approx(output, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PREDICTIONS), st.sampled_from(PREDICTIONS), angles, st.floats(-3, 3), st.floats(-3, 3))
def test_conversion_is_of_the_same_pair(source, target, angle, x0, noise):
    alpha, sigma = torch.tensor(angle).cos().item(), torch.tensor(angle).sin().item()
    linear = conversion(source, target, alpha, sigma)
    (u, w), (to_u, to_w) = mixture(source, alpha, sigma), mixture(target, alpha, sigma)
    result = linear.of_x * (alpha * x0 + sigma * noise) + linear.of_output * (u * x0 + w * noise)
    assert result == pytest.approx(to_u * x0 + to_w * noise, abs=1e-9)


def test_v_is_the_paper_s():
    """v = √ᾱ·ε - √(1-ᾱ)·x0, and x0 = √ᾱ·x - √(1-ᾱ)·v."""
    process = DiffusionProcess("ddpm", "cosine", "v", 1000)
    x0, noise, t, x = example(process, 0)
    alpha, sigma = (c(t, torch.float64)[..., None] for c in (process.alpha, process.sigma))
    v = training_target(process, x0, noise, t)
    torch.testing.assert_close(v, alpha * noise - sigma * x0)
    torch.testing.assert_close(to_x0(process, v, x, t), alpha * x - sigma * v)
    torch.testing.assert_close(to_epsilon(process, v, x, t), sigma * x + alpha * v)


def test_velocity_is_the_derivative_of_the_path():
    process = PROCESSES[-1]
    x0, noise, t, x = example(process, 0)
    later = process.add_noise(x0, noise, t + 0.5)
    velocity = training_target(process, x0, noise, t)
    torch.testing.assert_close((later - x) * 2000, velocity, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(velocity, noise - x0)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.kind}-{p.schedule}-{p.prediction}")
def test_bf16_inputs_are_computed_in_fp32(process):
    x0, noise, t, x = example(process, 1, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        target = training_target(process, x0, noise, t)
        clean = convert(process, target.bfloat16(), x.bfloat16(), t, "x0")
    assert x.dtype == target.dtype == clean.dtype == torch.float32
    torch.testing.assert_close(target, training_target(process, x0.float(), noise.float(), t), rtol=0, atol=0)
    expected = convert(process, target.bfloat16().float(), x.bfloat16().float(), t, "x0")
    torch.testing.assert_close(clean, expected, rtol=0, atol=0)


def test_unknown_prediction_is_named():
    process = PROCESSES[0]
    x0, _, t, x = example(process, 0)
    with pytest.raises(ValueError, match=r"'score'.*v, epsilon, x0, velocity"):
        convert(process, x0, x, t, "score")
