"""The mixture head: an exact density, learnt to its entropy; draws that follow it; guidance as it is defined."""

import math
from itertools import pairwise

import pytest
import torch
from margins import seed
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from latentlm.config import MixtureHeadConfig
from latentlm.model.heads import MixtureHead, SamplerOptions
from latentlm.model.heads.mixture import GaussianMixture

OPTIONS = SamplerOptions("dpm++2m", 1)
CONDITIONS = torch.eye(8)[:2]  # hidden states
ANGLES = (0.0, math.pi / 8)
STD = 0.15
"""Of the eight clusters on a ring of radius 1.5, turned by an angle for each condition."""


def centres(angle: float) -> Tensor:
    places = torch.arange(8) * math.pi / 4 + angle
    return 1.5 * torch.stack((places.cos(), places.sin()), dim=1)  # (8, 2)


def ring(num: int, angle: float, generator: torch.Generator) -> Tensor:
    which = torch.randint(8, (num,), generator=generator)
    return centres(angle)[which] + STD * torch.randn(num, 2, generator=generator)


def ring_log_density(x: Tensor, angle: float) -> Tensor:
    distance = (x[:, None] - centres(angle)).square().sum(-1) / STD**2
    return torch.logsumexp(-0.5 * distance, 1) - math.log(8 * 2 * math.pi * STD**2)


@pytest.fixture(scope="module")
def learnt() -> MixtureHead:
    """A head that has seen 100,000 points of each ring, told apart by the hidden state."""
    torch.manual_seed(seed())
    generator, steps, rate = torch.Generator().manual_seed(seed(100)), 400, 0.003
    head = MixtureHead(8, 2, MixtureHeadConfig(components=32, num_layers=1, width=32))
    head.initialise()
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0)
    hidden = CONDITIONS.repeat_interleave(128, 0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1, 2 - 2 * step / steps)
        clean = torch.cat([ring(128, angle, generator) for angle in ANGLES])
        optimiser.zero_grad()
        (head.loss(hidden, clean, generator) / 256).backward()
        optimiser.step()
    return head.eval()


@torch.inference_mode()
def test_it_learns_a_density_to_its_entropy(learnt, margin):
    """Over 20 seeds the gap was 0.002 to 0.013 nats; one cluster of eight that is missed costs 0.17."""
    generator = torch.Generator().manual_seed(seed(7))
    for number, (state, angle) in enumerate(zip(CONDITIONS, ANGLES, strict=True)):
        held_out = ring(4000, angle, generator)
        nats = learnt.loss(state.expand(4000, -1), held_out, generator) / 4000
        entropy = -ring_log_density(held_out, angle).mean()
        margin(f"nats above the entropy, ring {number}", float(abs(nats - entropy)), at_most=0.04)


@torch.inference_mode()
def test_the_density_has_an_integral_of_one(learnt):
    side = torch.linspace(-6, 6, 401)
    mixture = learnt(CONDITIONS)
    density = mixture.log_density(torch.cartesian_prod(side, side).expand(2, -1, -1)).exp()  # (2, 401²)
    assert (density.double().sum(1) * 0.03**2).tolist() == pytest.approx([1, 1], abs=1e-3)


@torch.inference_mode()
def test_draws_fall_where_the_data_are(learnt, margin):
    generators = [torch.Generator().manual_seed(number) for number in range(4000)]
    for state, angle in zip(CONDITIONS, ANGLES, strict=True):
        drawn = learnt.sampler(OPTIONS)(state.expand(4000, -1), None, None, None, generators)
        distance, nearest = torch.cdist(drawn, centres(angle)).min(1)
        shares = nearest.bincount(minlength=8) / 4000
        margin(f"share of a cluster, off, at {angle:.2f}", float((shares - 1 / 8).abs().max()), at_most=0.045)
        width = float(distance.square().mean().sqrt() / (STD * 2**0.5))
        margin(f"width of the clusters, off, at {angle:.2f}", abs(width - 1), at_most=0.25)
        margin(f"draws near a cluster at {angle:.2f}", float((distance < 5 * STD).float().mean()), at_least=0.9)


def random_head(**options) -> MixtureHead:
    torch.manual_seed(1)
    head = MixtureHead(4, 3, MixtureHeadConfig(components=5, width=16, **options))
    head.initialise()
    with torch.no_grad():
        head.out.weight.normal_(std=0.3)
    return head


@torch.no_grad()
def test_the_loss_is_the_negative_log_likelihood_in_nats():
    head, hidden, clean = random_head(min_scale=0.2), torch.randn(7, 4), torch.randn(7, 3)
    mixture = head(hidden)
    theirs = MixtureSameFamily(
        Categorical(logits=mixture.log_weights), Independent(Normal(mixture.means, mixture.log_scales.exp()), 1)
    )
    found = head.loss(hidden, clean, torch.Generator())
    torch.testing.assert_close(found, -theirs.log_prob(clean).sum(), atol=1e-4, rtol=1e-5)
    assert mixture.log_scales.exp().min() > 0.2


def test_nothing_overflows_whatever_the_last_layer_says():
    head, hidden = random_head(min_scale=0.01), torch.randn(6, 4)
    for size in (-1e4, 1e4):
        head.zero_grad()
        with torch.no_grad():
            head.out.bias.fill_(size)
        loss = head.loss(hidden, torch.randn(6, 3), torch.Generator())
        loss.backward()
        assert loss.isfinite()
        assert all(value.grad.isfinite().all() for value in head.parameters())


@torch.inference_mode()
def test_temperature_is_a_factor_of_the_standard_deviations():
    hidden = torch.randn(1, 4).expand(3000, -1)
    plain, colder = (
        random_head(temperature=t).sampler(OPTIONS)(hidden, None, None, None, generators(3000)) for t in (1.0, 0.25)
    )
    mixture = random_head()(hidden[:1])
    chosen = torch.cdist(colder, mixture.means[0]).argmin(1)
    assert len(chosen.unique()) > 1
    errors = [draws - mixture.means[0, chosen] for draws in (plain, colder)]
    torch.testing.assert_close(errors[1].median(0).values, 0.25 * errors[0].median(0).values, atol=0.05, rtol=0.2)
    assert (errors[1].std() / errors[0].std()).item() == pytest.approx(0.25, abs=0.1)


# ------------------------------------------------------------------ guidance

CONDITION = GaussianMixture(
    torch.tensor([[0.6, 0.4]]).log(),
    torch.tensor([[[-1.0, 0.5], [1.2, -0.4]]]),
    torch.tensor([[[0.5, 0.7], [0.8, 0.4]]]).log(),
)
NULL = GaussianMixture(
    torch.tensor([[0.3, 0.7]]).log(),
    torch.tensor([[[-0.5, 0.0], [1.6, -1.0]]]),
    torch.tensor([[[0.9, 0.6], [0.5, 0.8]]]).log(),
)
SIDE = torch.linspace(-7, 7, 561)
GRID = torch.cartesian_prod(SIDE, SIDE)


def generators(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(num)]


@pytest.fixture(scope="module")
def both() -> MixtureHead:
    """A head whose hidden state (1, 0) gives CONDITION and (0, 1) gives NULL."""
    head = MixtureHead(2, 2, MixtureHeadConfig(components=2, num_layers=1, width=2, min_scale=1e-6))
    with torch.no_grad():
        head.condition_in.weight.copy_(torch.eye(2))
        for parameter in (head.blocks[0].ffn.down.weight, head.out.bias):
            parameter.zero_()
        columns = [
            torch.cat([part.flatten() for part in (m.log_weights, m.means, m.log_scales)]) for m in (CONDITION, NULL)
        ]
        head.out.weight.copy_(torch.stack(columns, dim=1) / 2**0.5)  # a normed (1, 0) is (√2, 0)
        found = head(torch.eye(2))
    torch.testing.assert_close(found.means, torch.cat((CONDITION.means, NULL.means)), atol=1e-4, rtol=1e-4)
    return head


def guided_moments(scale: float) -> tuple[Tensor, Tensor]:
    """Mean (2,) and second moments (2, 2) of the guided density, by a sum over a grid."""
    c, u = (mixture.log_density(GRID[None].double())[0] for mixture in (CONDITION, NULL))
    sure = torch.sigmoid(c - u)  # P(c | x)
    density = c.exp() * sure ** (scale - 1) if scale >= 1 else scale * c.exp() + (1 - scale) * u.exp()
    weights = (density / density.sum())[:, None]
    points = GRID.double()
    return (weights * points).sum(0), (weights * points).T @ points


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 1.5, 2.0, 4.0])
@torch.inference_mode()
def test_guided_draws_follow_the_guided_density(both, scale):
    num = 6000
    states = torch.eye(2)[:, None].expand(2, num, 2)
    drawn = both.sampler(OPTIONS)(*states, None, torch.full((num, 1), scale), generators(num)).double()
    mean, second = guided_moments(scale)
    products = drawn[:, :, None] * drawn[:, None]
    for found, expected in ((drawn, mean), (products, second)):
        error = (found.mean(0) - expected) / (found.std(0) / num**0.5)
        assert error.abs().max() < 4.5


def test_guidance_moves_what_the_test_above_measures():
    """Or it could not fail: the means of neighbouring scales lie many standard errors apart."""
    means = [guided_moments(scale)[0] for scale in (0.0, 0.4, 1.0, 2.0, 4.0)]
    for one, other in pairwise(means):
        assert (one - other).norm() > 0.1


@torch.inference_mode()
def test_where_nothing_is_kept_the_surest_candidate_is_taken(both):
    num = 300
    states = torch.eye(2)[:, None].expand(2, num, 2)
    drawn = both.sampler(OPTIONS)(*states, None, torch.full((num, 1), 1000.0), generators(num))
    sure = CONDITION.log_density(drawn[None])[0] - NULL.log_density(drawn[None])[0]
    plain = both.sampler(OPTIONS)(states[0], None, None, None, generators(num))
    usual = CONDITION.log_density(plain[None])[0] - NULL.log_density(plain[None])[0]
    assert sure.min() > usual.quantile(0.9)
