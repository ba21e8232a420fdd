import math

import pytest
import torch
from margins import seed
from tiny_run import TinyModel, tiny_config, trainer, without_clock
from torch import nn

from latentlm.config import OptimizerConfig
from latentlm.training.optim import Muon, Optimizers, learning_rate_factor, orthogonalize


def groups_of(optimizers, kind):
    return [group for optimizer in optimizers.optimizers if type(optimizer) is kind for group in optimizer.param_groups]


def names_of(model, params):
    ids = {id(param) for param in params}
    return {name for name, value in model.named_parameters() if id(value) in ids}


def test_adamw_decays_matrices_only_and_no_embeddings():
    model = TinyModel()
    optimizers = Optimizers(model, OptimizerConfig(weight_decay=0.3))
    decayed, plain = groups_of(optimizers, torch.optim.AdamW)
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0
    assert "transformer.blocks.0.up.weight" in names_of(model, decayed["params"])
    assert {"embedding.weight", "transformer.blocks.0.up.bias", "transformer.blocks.0.norm.weight"} <= names_of(
        model, plain["params"]
    )
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_muon_takes_the_matrices_of_the_blocks():
    model = TinyModel()
    optimizers = Optimizers(model, OptimizerConfig(kind="muon"))
    (muon,) = groups_of(optimizers, Muon)
    names = names_of(model, muon["params"])
    assert {"transformer.blocks.1.down.weight", "heads.image.blocks.0.up.weight"} <= names
    assert not {"embedding.weight", "heads.image.out.weight", "transformer.blocks.0.norm.weight"} & names
    with pytest.raises(ValueError, match="no matrices inside"):
        Optimizers(nn.Linear(3, 3), OptimizerConfig(kind="muon"))


def test_orthogonalize_brings_singular_values_near_one():
    for shape in ((3, 16, 40), (2, 40, 16), (1, 24, 24)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
        values = torch.linalg.svdvals(orthogonalize(x, steps=8))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_makes_the_steps_of_torch(margin):
    """torch's iteration is in bf16, so the comparison is to its precision."""
    g = torch.Generator().manual_seed(seed())
    ours = [nn.Parameter(torch.randn(shape, generator=g)) for shape in ((12, 20), (20, 12), (12, 20))]
    theirs = [nn.Parameter(value.detach().clone()) for value in ours]
    start = [value.detach().clone() for value in ours]
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2)
    muon = Muon(ours, lr=0.1, weight_decay=0.2)
    for param in ours:
        muon.state[param] = {"momentum_buffer": torch.zeros_like(param)}
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        muon.step()
        reference.step()
    for a, b, origin in zip(ours, theirs, start, strict=True):
        margin("distance over the way", (a - b).norm().item() / (b - origin).norm().item(), at_most=0.02)
        torch.testing.assert_close(
            muon.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"], rtol=1e-5, atol=1e-6
        )


def test_muon_leaves_a_matrix_without_gradient_alone():
    params = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))]
    muon = Muon(params, lr=0.1, weight_decay=0.1)
    for param in params:
        muon.state[param] = {"momentum_buffer": torch.full((3, 4), 0.5)}
    params[0].grad, params[1].grad = torch.zeros(3, 4), torch.randn(3, 4)
    muon.step()
    assert torch.equal(params[0], torch.ones(3, 4))
    assert torch.equal(muon.state[params[0]]["momentum_buffer"], torch.full((3, 4), 0.5))
    assert not torch.equal(params[1], torch.ones(3, 4))


def test_muon_trains_and_resumes(tmp_path, margin):
    config = {"optimizer": {"kind": "muon", "muon_learning_rate": 0.02, "schedule": "constant"}}
    trainer(tmp_path / "whole", TinyModel(seed=seed()), steps=24, **config).fit()
    trainer(tmp_path / "parts", TinyModel(seed=seed()), steps=12, **config).fit()
    trainer(tmp_path / "parts", TinyModel(seed=seed()), steps=24, **config).fit()
    records = without_clock(tmp_path / "whole/train.jsonl")
    assert without_clock(tmp_path / "parts/train.jsonl") == records
    margin("last loss over the first", records[-1]["loss"] / records[0]["loss"], at_most=0.8)


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_schedule(schedule, middle):
    config = tiny_config(optimizer={"schedule": schedule, "warmup_steps": 10, "final_fraction": 0.1}).optimizer
    assert learning_rate_factor(0, 0.0, config) == pytest.approx(0.1)
    assert learning_rate_factor(9, 0.0, config) == pytest.approx(1.0)
    assert learning_rate_factor(500, 0.5, config) == pytest.approx(middle)
    assert learning_rate_factor(1000, 1.0, config) == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert learning_rate_factor(1000, 1.7, config) == learning_rate_factor(1000, 1.0, config)


def test_learning_rates_follow_their_own_peaks():
    optimizers = Optimizers(TinyModel(), OptimizerConfig(kind="muon", learning_rate=1e-3, muon_learning_rate=0.02))
    optimizers.set_factor(0.5)
    assert [group["lr"] for group in groups_of(optimizers, Muon)] == [0.01]
    assert {group["lr"] for group in groups_of(optimizers, torch.optim.AdamW)} == {5e-4}


def test_schedule_without_warmup():
    config = OptimizerConfig(warmup_steps=0)
    assert learning_rate_factor(0, 0.0, config) == 1.0
    assert learning_rate_factor(1, 0.25, config) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
