"""The noising process: levels, times, dtypes, devices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from latentlm.config import DiffusionConfig
from latentlm.diffusion import DiffusionProcess
from latentlm.diffusion.schedule import cumulative_alpha

DDPM = DiffusionProcess.from_config(DiffusionConfig())
FLOW = DiffusionProcess.from_config(DiffusionConfig(process="flow"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cosine_is_the_closed_form_until_the_clip():
    """The product of 1 - β telescopes to ᾱ((t+1)/T)/ᾱ(0) before the last β, which is clipped at 0.999."""

    def closed(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = cumulative_alpha("cosine", 1000)
    for t in (0, 10, 500, 998):
        assert alpha_bar[t] == pytest.approx(closed((t + 1) / 1000) / closed(0), rel=1e-9)
    assert alpha_bar[999] == pytest.approx(alpha_bar[998] * 1e-3, rel=1e-9)
    assert all(a > b > 0 for a, b in pairwise(alpha_bar))


def test_linear_keeps_its_ends_for_any_number_of_timesteps():
    """1e-4 .. 0.02 at T = 1000; at other T the betas are scaled so that ᾱ ends at about the same level."""
    alpha_bar = cumulative_alpha("linear", 1000)
    assert alpha_bar[0] == pytest.approx(1 - 1e-4)
    assert alpha_bar[999] / alpha_bar[998] == pytest.approx(1 - 0.02)
    assert cumulative_alpha("linear", 400)[-1] == pytest.approx(alpha_bar[-1], rel=0.25)
    assert all(value > 0 for value in cumulative_alpha("linear", 10))


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'sine'.*cosine, linear"):
        cumulative_alpha("sine", 10)


def test_too_few_timesteps_are_named():
    with pytest.raises(ValueError, match=r"num_timesteps .* got 1"):
        DiffusionProcess.from_config(DiffusionConfig(num_timesteps=1))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_variance_is_preserved(schedule):
    process = DiffusionProcess("ddpm", schedule, "v", 1000)
    t = torch.arange(1000)
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000))
    # 1 - ᾱ is taken in fp64: an fp32 product is 1e-3 off at t = 0
    assert sigma[0].item() == pytest.approx(math.sqrt(1 - cumulative_alpha(schedule, 1000)[0]), rel=1e-7)


def test_flow_is_a_straight_line():
    t = torch.tensor([0.0, 250.0, 998.39, 1000.0])
    torch.testing.assert_close(FLOW.alpha(t) + FLOW.sigma(t), torch.ones(4))
    torch.testing.assert_close(FLOW.sigma(t), t / 1000)


@pytest.mark.parametrize("process", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_levels_are_the_tables(process):
    """Solvers and training see one process: `level` (fp64) is alpha and sigma (fp32)."""
    for time in (0, 1, 499, 999):
        level = process.level(float(time))
        assert level.alpha == pytest.approx(process.alpha(torch.tensor(time)).item(), rel=1e-6, abs=1e-7)
        assert level.sigma == pytest.approx(process.sigma(torch.tensor(time)).item(), rel=1e-6)


def test_level_between_integers_interpolates_the_noise_to_signal_ratio():
    low, middle, high = (DDPM.level(time) for time in (500.0, 500.25, 501.0))
    ratios = [level.sigma / level.alpha for level in (low, middle, high)]
    assert ratios[1] == pytest.approx(0.75 * ratios[0] + 0.25 * ratios[2], rel=1e-12)
    assert math.hypot(middle.alpha, middle.sigma) == pytest.approx(1)


def test_ddpm_times_are_all_integers_equally_often():
    """Training draws from all T timesteps, both ends included, not from a sampler's handful."""
    t = DDPM.sample_timesteps((50_000, 4), generator(), "cpu")
    assert t.dtype == torch.int64
    counts = torch.bincount(t.flatten(), minlength=1000)
    assert counts.shape == (1000,)
    assert counts.min() > 120  # 200 expected, standard deviation 14
    assert counts.max() < 280
    assert (t[:, 0] == t[:, 1]).float().mean() < 0.01  # copies of a latent have their own


def test_flow_times_are_uniform_and_continuous():
    t = FLOW.sample_timesteps((50_000,), generator(), "cpu")
    assert t.dtype == torch.float32
    assert t.min() >= 0
    assert t.max() < 1000
    assert t.mean().item() == pytest.approx(500, abs=6)
    assert (t != t.round()).float().mean() > 0.99


@pytest.mark.parametrize("process", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_times_depend_on_the_generator_alone(process):
    first = process.sample_timesteps((8, 4), generator(3), "cpu")
    torch.manual_seed(99)
    assert torch.equal(first, process.sample_timesteps((8, 4), generator(3), "cpu"))
    assert not torch.equal(first, process.sample_timesteps((8, 4), generator(4), "cpu"))


@pytest.mark.parametrize("process", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_noising_is_fp32_whatever_comes_in(process):
    """bf16 inputs are read exactly; α, σ and the result are fp32, also under autocast."""
    t = process.sample_timesteps((64, 4), generator(), "cpu")
    x0 = torch.randn(64, 4, 8, generator=generator(1)).bfloat16()
    noise = torch.randn(64, 4, 8, generator=generator(2)).bfloat16()
    expected = process.add_noise(x0.float(), noise.float(), t)
    with torch.autocast("cpu", torch.bfloat16):
        result = process.add_noise(x0, noise, t)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    exact = process.add_noise(x0.double(), noise.double(), t)
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


def test_noised_latents_have_the_level_of_their_time():
    t = torch.tensor([0, 300, 700, 999])
    x0 = 2 + torch.zeros(4, 20_000)
    noisy = DDPM.add_noise(x0, torch.randn(4, 20_000, generator=generator()), t)
    torch.testing.assert_close(noisy.mean(1), 2 * DDPM.alpha(t), rtol=0.02, atol=0.03)
    torch.testing.assert_close(noisy.std(1), DDPM.sigma(t), rtol=0.02, atol=0.01)


def test_process_of_equal_configs_is_one_key():
    again = DiffusionProcess.from_config(DiffusionConfig())
    assert again == DDPM
    assert hash(again) == hash(DDPM)
    assert DiffusionProcess.from_config(DiffusionConfig(schedule="linear")) != DDPM
    assert DiffusionProcess.from_config(DiffusionConfig(process="flow", prediction="epsilon")) == FLOW


def test_tables_first_used_in_inference_mode_serve_training():
    process = DiffusionProcess("ddpm", "cosine", "v", 321)
    t = torch.tensor([3, 5])
    with torch.inference_mode():
        process.add_noise(torch.ones(2, 4), torch.ones(2, 4), t)
    x0 = torch.ones(2, 4, requires_grad=True)
    process.add_noise(x0, torch.ones(2, 4), t).sum().backward()
    torch.testing.assert_close(x0.grad[:, 0], process.alpha(t))


def test_works_under_a_meta_default_device():
    process = DiffusionProcess("ddpm", "cosine", "v", 123)
    with torch.device("meta"):
        alpha = process.alpha(torch.tensor([1, 2], device="cpu"))
        assert process.add_noise(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([1, 2])).is_meta
    assert alpha.device.type == "cpu"
    assert alpha.isfinite().all()


@pytest.mark.parametrize("process", [DDPM, FLOW], ids=["ddpm", "flow"])
def test_compiles_whole(process):
    """No graph break, no warning, the same figures (eager backend: tracing is what is tested)."""
    t = process.sample_timesteps((6,), generator(), "cpu")
    x0, noise = torch.randn(2, 6, 4, generator=generator(1))
    compiled = torch.compile(process.add_noise, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x0, noise, t), process.add_noise(x0, noise, t))
