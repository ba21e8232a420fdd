import itertools

import pytest
import torch
from tiny_run import TinyModel
from torch import nn

from latentlm.training.ema import EMA, EVERY_STEP, PERIOD


def test_warm_up_then_decay():
    ema = EMA(nn.Linear(2, 2), 0.999)
    assert ema.decay_at(0) == pytest.approx(0.1)
    assert ema.decay_at(90) == pytest.approx(0.91)
    assert ema.decay_at(10**6) == 0.999


def test_average_is_the_recursion():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.5)
    expected = model.weight.item()
    for step in range(8):
        with torch.no_grad():
            model.weight.fill_(step)
        ema.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.tensors()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_of_many_steps_every_fourth_enters_and_the_average_is_nearly_the_same():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.99)
    with torch.no_grad():
        ema.average[0].fill_(0.0)
        expected, seen = 0.0, []
        for step in range(EVERY_STEP + 400):
            model.weight.fill_(step)
            ema.update(model)
            decay = min(0.99, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * step
            seen.append(ema.tensors()["weight"].item())
    changes = [after != before for before, after in itertools.pairwise(seen)]
    assert all(changes[: EVERY_STEP - 1])
    assert sum(changes[EVERY_STEP - 1 :]) == 400 // PERIOD
    assert seen[-1] == pytest.approx(expected, abs=PERIOD)  # an average that trails by fewer steps than a period


def test_names_under_compile_are_clean_and_the_average_moves():
    """A wrapper puts `_orig_mod.` into names; an average that matched by name would skip every parameter."""
    model = TinyModel()
    compiled = torch.compile(model)
    ema = EMA(compiled, 0.9)
    assert set(ema.tensors()) == {name for name, _ in model.named_parameters()}
    before = ema.tensors()["embedding.weight"].clone()
    with torch.no_grad():
        model.embedding.weight.add_(1)
    ema.update(compiled)
    torch.testing.assert_close(ema.tensors()["embedding.weight"], before + 0.9)


def test_applied_swaps_and_restores_to_the_bit_even_after_an_error():
    model = TinyModel()
    ema = EMA(model, 0.9)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1)
    own = [value.detach().clone() for value in model.parameters()]

    def fail():
        with ema.applied(model):
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ema.average, strict=True))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own, strict=True))


def test_half_precision_weights_are_averaged_in_fp32():
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    ema = EMA(model, 0.999)
    ema.num_updates = 10**6
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema.average[0].fill_(0.5)
    for _ in range(PERIOD):
        ema.update(model)
    torch.testing.assert_close(ema.average[0], torch.full((4, 4), 1 - 0.5 * 0.999**PERIOD))


def test_frozen_parameters_are_left_out():
    model = TinyModel()
    model.embedding.weight.requires_grad_(False)
    assert "embedding.weight" not in EMA(model, 0.9).tensors()
