"""The posterior: how strong the noise is after normalisation, what the prior term counts, exact pooled moments."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.config import PosteriorConfig
from latentlm.tokenizers.sigma_vae import Posterior, RunningMoments
from latentlm.types import Latents, draw

C_SIGMA = 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(kind: str = "sigma", latent_dim: int = 8, per_channel: bool = False) -> Posterior:
    return Posterior(PosteriorConfig(kind=kind, c_sigma=C_SIGMA), latent_dim, per_channel)


@pytest.mark.parametrize("per_channel", [False, True])
def test_noise_strength_after_normalisation_is_c_sigma(per_channel):
    """Noise added before the scale is known and divided by it later loses strength; here it is C_σ by construction."""
    scale = torch.tensor([0.1, 1.0, 5.0, 30.0]) if per_channel else torch.tensor(5.0)
    mean = torch.randn(4000, 16, 4, generator=generator()) * scale + 3.0
    module = posterior(latent_dim=4, per_channel=per_channel)
    valid = torch.ones(4000, 16, dtype=torch.bool)
    z, _ = module(mean, valid, generator(1))
    std = mean.std((0, 1)) if per_channel else mean.std()
    noise = (z - mean) / std  # in model space
    strength = noise.square().mean((0, 1)).sqrt()
    assert strength == pytest.approx(C_SIGMA, rel=0.05)
    amplitude = noise.square().mean((1, 2)).sqrt()  # |n|·C_σ of each example: one n for all its latents and channels
    assert amplitude.mean().item() == pytest.approx(0.798 * C_SIGMA, rel=0.05)
    if not per_channel:
        drawn = torch.stack([Latents(torch.zeros(16, 4), torch.tensor(C_SIGMA), "sigma").sample() for _ in range(2000)])
        assert drawn.square().mean().sqrt().item() == pytest.approx(C_SIGMA, rel=0.07)


def test_noise_is_exactly_n_times_c_sigma_times_std_times_epsilon():
    module = posterior().eval()
    module.running_std.fill_(7.0)
    mean = torch.randn(3, 5, 8, generator=generator())
    z, _ = module(mean, torch.ones(3, 5, dtype=torch.bool), generator(4))
    same = generator(4)
    epsilon = torch.randn(3, 5, 8, generator=same)
    n = torch.randn(3, 1, 1, generator=same)
    torch.testing.assert_close(z, mean + n * C_SIGMA * 7.0 * epsilon)


def test_scale_of_the_noise_carries_no_gradient_and_no_global_randomness():
    module = posterior()
    mean = torch.randn(4, 6, 8, requires_grad=True)
    state = torch.get_rng_state()
    z, _ = module(mean, torch.ones(4, 6, dtype=torch.bool), generator())
    assert torch.equal(state, torch.get_rng_state())
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))


def test_invalid_latents_count_nowhere():
    valid = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    mean = torch.randn(2, 7, 8, generator=generator())
    spoiled = torch.where(valid[..., None], mean, 1e3)
    first, second = posterior(), posterior()
    z, prior = first(mean, valid, generator(1))
    z_spoiled, prior_spoiled = second(spoiled, valid, generator(1))
    torch.testing.assert_close(z_spoiled, z)
    torch.testing.assert_close(prior_spoiled, prior)
    torch.testing.assert_close(second.running_std, first.running_std)
    assert torch.all(z[0, 4:] == 0)
    assert prior[0].item() == pytest.approx(mean[0, :4].square().mean().item(), rel=1e-5)


def test_running_std_follows_a_growing_spread_and_rests_in_eval():
    module = posterior()
    valid = torch.ones(64, 16, dtype=torch.bool)
    for step in range(60):
        scale = min(1.0 + step / 5, 4.0)
        module(torch.randn(64, 16, 8, generator=generator(step)) * scale + 1, valid, generator())
    assert module.running_std.item() == pytest.approx(4.0, rel=0.02)
    assert module.running_mean.item() == pytest.approx(1.0, abs=0.1)
    module.eval()
    module(torch.randn(64, 16, 8) * 100, valid, generator())
    assert module.running_std.item() == pytest.approx(4.0, rel=0.02)


def test_learned_posterior_is_a_gaussian_with_its_kl():
    module = posterior("learned", latent_dim=3)
    mean, log_variance = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([-1.0, 0.5, 0.0])
    parameters = torch.cat((mean, log_variance)).expand(20000, 1, 6)
    z, prior = module(parameters, torch.ones(20000, 1, dtype=torch.bool), generator())
    torch.testing.assert_close(z.mean((0, 1)), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.std((0, 1)), (0.5 * log_variance).exp(), atol=0.03, rtol=0)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(prior[0], kl.mean())


def test_draws_from_a_learned_posterior_have_the_std_of_each_element():
    std = torch.tensor([[0.1, 1.0, 5.0], [2.0, 0.5, 0.0]])
    mean = torch.randn(2, 3, generator=generator())
    _, z = draw([Latents(mean, std, "learned")] * 10000, generator(1))
    noise = z.view(10000, 2, 3) - mean
    torch.testing.assert_close(noise.square().mean(0).sqrt(), std, atol=1e-6, rtol=0.03)
    unit = (noise / std)[:, std > 0]
    assert unit.pow(4).mean().item() == pytest.approx(3, abs=0.3)  # Gaussian: no common deviation of an example


def test_autoencoder_adds_nothing():
    module = posterior("none")
    mean = torch.randn(2, 3, 8)
    z, prior = module(mean, torch.ones(2, 3, dtype=torch.bool), generator())
    assert torch.equal(z, mean)
    torch.testing.assert_close(prior, mean.square().mean((1, 2)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.booleans())
def test_pooled_moments_equal_those_of_everything_at_once(sizes, per_channel):
    values = np.random.default_rng(sum(sizes)).normal(1e4, 0.1, (sum(sizes), 3))  # a mean that eats fp32's digits
    moments, start = RunningMoments(per_channel), 0
    for size in sizes:
        moments.update(torch.from_numpy(values[start : start + size]))
        start += size
    if not sum(sizes):
        with pytest.raises(ValueError, match="no valid latents"):
            moments.result()
        return
    mean, std = moments.result()
    axis = 0 if per_channel else None
    np.testing.assert_allclose(mean.numpy(), values.mean(axis), rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), values.std(axis), rtol=1e-6, atol=1e-9)
    assert moments.count == sum(sizes)
