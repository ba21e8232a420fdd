"""Phases that train against each other: what reaches whom, when, and that a run survives being killed in between."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adversarial_run import CENTRE, OPTIMIZER, SPREAD, Density, Pair, adversarial
from margins import seed
from safetensors.torch import load_file
from tiny_run import TinyModel, tiny_config, trainer, without_clock
from torch import nn

from latentlm.config import OptimizerConfig
from latentlm.training.checkpoint import run_tensors
from latentlm.training.distributed import World, launch
from latentlm.training.logs import read_log
from latentlm.training.objective import Objective, Pass, Phase, Run, adaptive_weight, plain
from latentlm.training.trainer import NonFiniteLoss, Trainer

SCRIPT = Path(__file__).with_name("adversarial_run.py")
ENVIRONMENT = {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}


def tensors(run):
    return {name: value.clone() for name, value in run_tensors(run.model, run.phases, run.ema).items()}


# ------------------------------------------------------------------ what a step does


def by_hand(pair: Pair, steps: int) -> None:
    """The loop that anyone would write for two networks: the other one is frozen while one learns."""
    networks = (pair.generator, pair.discriminator)
    losses = (pair.generator_loss, pair.discriminator_loss)
    weights = {"features": pair.matching, "weight": 0.0}
    optimizers = []
    for network in networks:
        params = list(network.parameters())
        optimizers.append(torch.optim.AdamW(params, OPTIMIZER.learning_rate, OPTIMIZER.betas, weight_decay=0.0))
    loader = Density(2)
    for step in range(steps):
        batches = loader.next_step()
        count = sum(batch.num_tokens for batch in batches)
        passes = [Pass(step) for _ in batches]
        for number, (network, loss, optimizer) in enumerate(zip(networks, losses, optimizers, strict=True)):
            for other in networks:
                other.requires_grad_(other is network)
            optimizer.zero_grad()
            for batch, one in zip(batches, passes, strict=True):
                generator = torch.Generator().manual_seed(batch.seed + number)
                torch.manual_seed(batch.seed + number + 0x5EED)
                sums = loss(batch, generator, one)
                sum(weights.get(name, 1.0) * value / count for name, value in sums.items()).backward()
            nn.utils.clip_grad_norm_(network.parameters(), OPTIMIZER.clip)
            optimizer.param_groups[0]["lr"] = OPTIMIZER.learning_rate * min(1.0, (step + 1) / OPTIMIZER.warmup_steps)
            optimizer.step()
    for network in networks:
        network.requires_grad_(True)


def test_two_phases_equal_two_networks_trained_in_turn_by_hand(tmp_path):
    ours, theirs = Pair(), Pair()
    adversarial(tmp_path, ours, steps=12).fit()
    by_hand(theirs, 12)
    for name in ("generator", "discriminator"):
        expected = getattr(theirs, name).state_dict()
        assert any(not torch.equal(value, getattr(Pair(), name).state_dict()[key]) for key, value in expected.items())
        torch.testing.assert_close(getattr(ours, name).state_dict(), expected, rtol=0, atol=1e-6)


def test_gradients_of_a_phase_reach_its_own_parameters_alone(tmp_path):
    run = adversarial(tmp_path, steps=1)
    generator, discriminator = run.phases
    discriminator.gradients.buffers[0].fill_(7.0)
    batches = run.loader.next_step()
    generator.step(batches, [Pass(0) for _ in batches], {"examples": 72.0}, 0.0)
    assert (discriminator.gradients.buffers[0] == 7.0).all()
    assert generator.gradients.buffers[0].abs().sum() > 0


class TwoHeads(nn.Module):
    """A network and a critic of what it makes, which learns first and leaves the graph of what it judged."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.maker, self.critic = nn.Linear(1, 1), nn.Linear(1, 1)

    def critic_loss(self, batch, generator, one):
        one.kept["made"] = self.maker(batch.values)
        return {"critic": self.critic(one.kept["made"].detach()).square().sum()}

    def maker_loss(self, batch, generator, one):
        return {"maker": self.critic(one.kept["made"]).square().sum()}


def test_a_phase_may_go_on_with_the_graph_that_an_earlier_one_kept(tmp_path):
    """The critic first: the maker's phase needs no second forward of the maker, and sees the critic as it now is."""
    both, calls = TwoHeads(), []
    both.maker.register_forward_hook(lambda *_: calls.append(1))
    unclipped = OPTIMIZER.model_copy(update={"clip": 1e9})
    phases = (
        Phase("critic", both.critic, both.critic_loss, unclipped),
        Phase("maker", both.maker, both.maker_loss, unclipped),
    )
    run = Trainer(Run(model=both.maker, objective=Objective(phases)), Density(2), tiny_config(steps=1), tmp_path)
    run.fit()
    assert len(calls) == 2
    batches, fresh = Density(2).next_step(), TwoHeads()
    fresh.critic.load_state_dict(both.critic.state_dict())
    values = torch.cat([batch.values for batch in batches])
    fresh.critic(fresh.maker(values)).square().mean().backward()
    torch.testing.assert_close(both.maker.weight.grad, fresh.maker.weight.grad)
    (record,) = read_log(tmp_path / "train.jsonl")
    assert {"learning_rate", "gradient_norm", "learning_rate/critic", "gradient_norm/critic"} <= set(record)
    assert record["gradient_norm"] == pytest.approx(
        torch.stack([value.grad.norm() for value in both.maker.parameters()]).norm().item(), rel=1e-5
    )


def test_the_adaptive_weight_makes_two_gradients_equally_long():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    x = torch.tensor([3.0, 4.0])
    first, second = (weight @ x).sum(), 0.1 * (weight @ x).sum()
    assert adaptive_weight(first, second, weight).item() == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(first, second, weight, most=2.0).item() == 2.0
    assert weight.grad is None
    assert not adaptive_weight(first, second, weight).requires_grad
    second.backward()  # the graph is still there


# ------------------------------------------------------------------ it learns, from a start on


def distance(run: Trainer) -> float:
    """Wasserstein distance of 4000 samples of the averaged generator to the density, by sorting."""
    g = torch.Generator().manual_seed(1)
    noise, real = torch.randn(4000, 2, generator=g), CENTRE + SPREAD * torch.randn(4000, generator=g)
    with run.averaged() as generator:
        made = generator(noise).flatten()
    return float((made.sort().values - real.sort().values).abs().mean())


def test_a_generator_learns_a_density_from_its_discriminator_alone(tmp_path, margin):
    """The distance of what it makes to the density, over that before the first step."""
    pair = Pair(seed=seed(), matching=0.0)
    settings = {"steps": 300, "global_micro_batches": 1, "log_every": 100, "save_every": 1000, "ema": 0.98}
    run = adversarial(tmp_path, pair, seed=seed(), **settings)
    before = distance(run)
    run.fit()
    margin("distance before", before, at_least=1)
    margin("distance after, over that before", distance(run) / before, at_most=0.3)


def test_a_discriminator_joins_at_its_start_with_a_warm_up_of_its_own(tmp_path):
    pair = Pair(begin=4)
    run = adversarial(tmp_path, pair, steps=8)
    before = {name: value.clone() for name, value in pair.discriminator.state_dict().items()}
    original, states = run._step, []

    def watched(clock):
        original(clock)
        states.append(all(torch.equal(value, before[name]) for name, value in pair.discriminator.state_dict().items()))

    run._step = watched
    run.fit()
    assert states == [True] * 4 + [False] * 4
    records = read_log(tmp_path / "train.jsonl")
    for record in records[:4]:
        assert set(record["losses"]) == {"features"}
        assert not any("discriminator" in name for name in record)
    for record in records[4:]:
        assert set(record["losses"]) == {"features", "adversarial", "weight", "hinge"}
        assert record["gradient_norm/discriminator"] > 0
    rates = [record["learning_rate/discriminator"] / OPTIMIZER.learning_rate for record in records[4:]]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert records[3]["learning_rate"] == pytest.approx(OPTIMIZER.learning_rate)


def test_the_loss_in_the_log_is_the_weighted_sum_of_all_phases(tmp_path):
    adversarial(tmp_path, steps=1).fit()
    (record,) = read_log(tmp_path / "train.jsonl")
    losses = record["losses"]
    assert record["loss"] == pytest.approx(0.5 * losses["features"] + losses["adversarial"] + losses["hinge"])
    assert losses["weight"] > 0


# ------------------------------------------------------------------ interrupted, exported, shared out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """12 steps of two micro-batches, a checkpoint every 4, log lines that straddle them, a start in mid-run."""
    run = adversarial(tmp_path_factory.mktemp("whole"), Pair(begin=2), steps=12, log_every=3)
    run.fit()
    return run


@pytest.mark.parametrize(
    ("kill", "step"),
    [("generator:14", 7), ("generator:20", 10), ("discriminator:9", 7), ("discriminator:16", 10)],
)
def test_killed_inside_a_phase_and_resumed_it_is_bit_identical(whole, tmp_path, kill, step):
    """The call is the second micro-batch of that phase in that step (the discriminator joins in the third)."""
    arguments = [str(tmp_path), "steps=12", "log_every=3", "start=2", f"kill={kill}"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "model").exists()
    again = adversarial(tmp_path, Pair(seed=9, begin=2), seed=0, steps=12, log_every=3)
    assert int(again.checkpoints.latest().name.removeprefix("step-")) == 4 * ((step - 1) // 4)
    again.fit()
    assert without_clock(tmp_path / "train.jsonl") == without_clock(whole.folder / "train.jsonl")
    torch.testing.assert_close(tensors(again), tensors(whole), rtol=0, atol=0)
    for name in ("model", "ema"):
        found, expected = ((f / f"model/{name}.safetensors").read_bytes() for f in (tmp_path, whole.folder))
        assert found == expected


def test_the_generator_is_exported_and_averaged_alone(whole):
    names = set(whole.run.model.state_dict())
    for name in ("model", "ema"):
        assert set(load_file(whole.folder / f"model/{name}.safetensors")) == names
    assert set(whole.ema.names) == names
    assert {path.name for path in (whole.folder / "model").iterdir()} == {"model.safetensors", "ema.safetensors"}


def test_a_checkpoint_has_all_phases_and_the_model_under_the_names_of_a_plain_run(whole):
    found = set(tensors(whole))
    single = trainer(whole.folder / "plain", model=nn.Sequential(nn.Linear(1, 1)))
    assert set(tensors(single)) == {
        f"{prefix}0.{kind}{suffix}"
        for kind in ("weight", "bias")
        for prefix, suffixes in {
            "model.": [""],
            "ema.": [""],
            "optimizer.": [".step", ".exp_avg", ".exp_avg_sq"],
        }.items()
        for suffix in suffixes
    }
    others = {name for name in found if name.startswith("phases.discriminator.")}
    assert {name.split(".")[0] for name in found - others} == {"model", "optimizer", "ema"}
    assert "phases.discriminator.model.num_calls" in others
    assert "phases.discriminator.optimizer.body.0.weight.exp_avg" in others


def test_another_set_of_phases_may_not_go_on(whole, tmp_path):
    adversarial(tmp_path, steps=2).fit()
    pair = Pair()
    alone = Objective(pair.objective().phases[:1])
    alone = Objective((replace(alone.phases[0], loss=lambda b, g, one: {"x": pair.make(b, g).sum()}),))
    config = tiny_config(steps=3, loss_weights={})
    with pytest.raises(ValueError, match=r"was made with phases = .*discriminator.*, this run has None; cannot resume"):
        Trainer(Run(model=pair.generator, objective=alone), Density(2), config, tmp_path).fit()


def test_two_processes_equal_one(tmp_path):
    settings = ["steps=8", "global_micro_batches=4", "start=3"]
    adversarial(tmp_path / "one", Pair(begin=3), steps=8, global_micro_batches=4).fit()
    assert launch(2, [str(SCRIPT), str(tmp_path / "two"), *settings], env=ENVIRONMENT) == 0
    one, two = (read_log(tmp_path / name / "train.jsonl") for name in ("one", "two"))
    for x, y in zip(one, two, strict=True):
        assert x["losses"] == pytest.approx(y["losses"], abs=1e-5)
        norms = [name for name in x if name.startswith("gradient_norm")]
        assert [x[name] for name in norms] == pytest.approx([y[name] for name in norms], abs=1e-4)
    for name in ("model", "ema"):
        left, right = (load_file(tmp_path / folder / f"model/{name}.safetensors") for folder in ("one", "two"))
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)
    again = adversarial(tmp_path / "two", Pair(seed=4, begin=3), seed=0, steps=8, global_micro_batches=4)
    again._resume(True)
    other = adversarial(tmp_path / "one", Pair(seed=4, begin=3), seed=0, steps=8, global_micro_batches=4)
    other._resume(True)
    left, right = ({n: v for n, v in tensors(run).items() if not n.endswith("num_calls")} for run in (again, other))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# ------------------------------------------------------------------ frozen networks, and what cannot be


class Judge(nn.Module):
    """A network that only measures."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5))


def test_a_frozen_network_measures_and_is_neither_trained_nor_saved(tmp_path):
    model, judge = nn.Linear(1, 1), Judge()
    before, modes = judge.net[0].weight.clone(), []

    def loss(batch, generator, one):
        modes.append(judge.net.training)
        return {"distance": (judge.net(model(batch.values)) - judge.net(batch.values)).abs().sum()}

    objective = Objective((Phase("model", model, loss, OPTIMIZER),), frozen=(judge,))
    run = Trainer(Run(model=model, objective=objective), Density(2), tiny_config(steps=3), tmp_path)
    was = model.weight.clone()
    run.fit()
    assert not torch.equal(model.weight, was)
    assert torch.equal(judge.net[0].weight, before)
    assert judge.net[0].weight.grad is None
    assert modes == [False] * 6
    assert not any("net" in name for name in tensors(run))


def refused(message, phases, model=None, **values):
    config = tiny_config(loss_weights={}, **values)
    with pytest.raises(ValueError, match=message):
        Trainer(Run(model=model or phases[0].module, objective=Objective(phases)), Density(2), config, Path("none"))


def test_phases_that_do_not_go_together_are_refused():
    generator, discriminator = Pair().objective().phases
    refused(r"distinct names, each an identifier; got \['generator', 'generator'\]", (generator, generator))
    refused("distinct names", (generator, replace(discriminator, name="a.b")))
    refused("'generator' and 'other' both train body.0.weight", (generator, replace(generator, name="other")))
    refused("none of the phases discriminator trains the model", (discriminator,), model=generator.module)


def test_several_phases_are_not_sharded():
    pair, config = Pair(), tiny_config(parallel="shard", loss_weights={})
    with pytest.raises(ValueError, match="shard is for a single phase, this run has generator, discriminator: "):
        Trainer(
            Run(model=pair.generator, objective=pair.objective()),
            Density(2),
            config,
            Path("none"),
            world=World(0, 2, 0, 2),
        )


def test_two_phases_may_not_give_a_loss_of_one_name(tmp_path):
    pair = Pair()
    first, second = pair.objective().phases
    same = replace(second, loss=lambda *a: {"features": pair.discriminator_loss(*a)["hinge"]})
    run = Run(model=pair.generator, objective=Objective((first, same)))
    with pytest.raises(ValueError, match="phase 'discriminator' has a loss 'features', and so has an earlier phase"):
        Trainer(run, Density(2), tiny_config(loss_weights={}), tmp_path).fit()


def test_a_gradient_that_is_not_finite_names_its_phase(tmp_path):
    pair = Pair()
    pair.discriminator.out.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss, match="gradient norm of phase 'discriminator' is"):
        adversarial(tmp_path, pair, steps=2).fit()


# ------------------------------------------------------------------ the plain case


def test_a_plain_objective_is_the_default(tmp_path):
    """Weights given with the phase go over those of the configuration."""
    model = TinyModel()
    config = tiny_config(steps=2)
    Trainer(Run(model=model), trainer(tmp_path / "x").loader, config, tmp_path / "default").fit()
    trainer(tmp_path / "plain", steps=2).fit()
    trainer(tmp_path / "weighted", steps=2, loss_weights={"image": 3.0}).fit()
    default, explicit, weighted = (
        without_clock(tmp_path / name / "train.jsonl") for name in ("default", "plain", "weighted")
    )
    assert default == explicit
    assert "phases" not in Trainer(Run(model=model), trainer(tmp_path / "x").loader, config, tmp_path / "y").identity
    losses = weighted[0]["losses"]
    assert weighted[0]["loss"] == pytest.approx(losses["text"] + 3 * losses["image"] + losses["speech"])
    assert plain(model, OptimizerConfig()).phases[0].module is model
