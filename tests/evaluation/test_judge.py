"""The judge of digits and the Fréchet distance can both fail."""

import pytest
import torch
from margins import seed

from latentlm.evaluation import judge as judges
from latentlm.evaluation.frechet import _balanced, frechet_distance
from latentlm.evaluation.judge import Scans, accuracy, compare, load_judge, real_scans, to_scans


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def test_packaged_judge_knows_held_out_digits(judge, margin):
    """Exactly how many, since no two answers are so close that rounding could turn them."""
    held_out = real_scans("held_out")
    assert len(held_out.labels) == 297
    assert int((judge.classify(held_out.values) == held_out.labels).sum()) == 294
    first, second = judge(held_out.values).detach().topk(2).values.T
    margin("smallest lead of an answer, logits", (first - second).min(), at_least=0.01)


def test_judge_is_at_chance_on_noise_and_on_shuffled_labels(judge, margin):
    generator = torch.Generator().manual_seed(seed())
    noise = Scans(torch.rand(1000, 1, 8, 8, generator=generator), torch.arange(1000) % 10)
    margin("accuracy on noise", accuracy(judge, noise), at_most=0.2)
    real = real_scans("held_out")
    shuffled = Scans(real.values, real.labels[torch.randperm(297, generator=generator)])
    margin("accuracy on shuffled labels", accuracy(judge, shuffled), at_most=0.2)


def test_training_the_judge_learns(margin):
    """Two epochs are enough to see it; the packaged weights have sixty."""
    held_out = real_scans("held_out")
    torch.manual_seed(seed())
    untrained, trained = judges.Judge().eval(), judges.train_judge(seed=seed(1), epochs=2)
    margin("accuracy untrained", accuracy(untrained, held_out), at_most=0.4)
    margin("accuracy after two epochs", accuracy(trained, held_out), at_least=0.8)


def test_to_scans_undoes_enlargement():
    from latentlm.data.embedded import digits

    items = digits.load("held_out")[:5]
    large = to_scans([item.image.resize((32, 32), 0) for item in items])
    assert torch.equal(large, to_scans([item.image for item in items]))
    assert large.shape == (5, 1, 8, 8)
    assert large.max() <= 1


def test_frechet_distance_of_normal_distributions():
    """Closed form: means 3 apart and standard deviations 1 and 2 give 9 + 4·(1 - 2)² in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    y[:, 0] += 3
    assert frechet_distance(x, y) == pytest.approx(13, rel=0.01)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_frechet_distance_agrees_with_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64) @ mix
    y = torch.randn(400, 6, generator=generator, dtype=torch.float64) + 0.3
    first, second = torch.cov(x.T), torch.cov(y.T)
    root = linalg.sqrtm((first @ second).numpy()).real.trace()
    expected = (x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2 * root
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_comparison_tells_real_from_degraded(judge, margin):
    real, train = real_scans("all"), real_scans("train")
    generator = torch.Generator().manual_seed(seed())

    def ratio(values, labels=train.labels):
        return compare(Scans(values, labels), real, judge, num_draws=4, seed=seed()).ratio

    same = ratio(train.values)
    noisy = (train.values + 0.1 * torch.randn(train.values.shape, generator=generator)).clamp(0, 1)
    margin("real scans", same, at_most=1.2)
    margin("noisy scans", ratio(noisy), at_least=1.5)
    margin("noise", ratio(torch.rand(train.values.shape, generator=generator)), at_least=20)
    one_each = torch.stack([train.values[train.labels == k][0] for k in range(10)])
    margin("one scan of each", ratio(one_each[train.labels]), at_least=1.5)  # every drawing right, no variety


def test_comparison_is_balanced_and_names_a_missing_class(judge):
    real = real_scans("held_out")
    found = compare(real, real_scans("all"), judge, num_draws=2)
    assert found.size % 10 == 0
    assert found.size <= 297
    keep = real.labels != 3
    with pytest.raises(ValueError, match="every class"):
        compare(Scans(real.values[keep], real.labels[keep]), real, judge, num_draws=2)
    halves = _balanced(real.labels, 5, 2, torch.Generator().manual_seed(0))
    assert not set(halves[0].tolist()) & set(halves[1].tolist())
    assert torch.bincount(real.labels[halves[0]]).tolist() == [5] * 10
