"""The loop on one process: counts, micro-batches, resume, signals, errors."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from margins import seed
from safetensors import SafetensorError
from tiny_run import Poisoned, TinyLoader, TinyModel, make_batch, tiny_config, trainer, without_clock
from torch import nn

from latentlm.config import OptimizerConfig
from latentlm.training.checkpoint import CheckpointError, run_tensors
from latentlm.training.distributed import World
from latentlm.training.logs import read_log
from latentlm.training.objective import Run
from latentlm.training.optim import learning_rate_factor
from latentlm.training.parallelize import Replicated, resolve_precision
from latentlm.training.trainer import NonFiniteLoss, Trainer
from latentlm.types import MediaBatch
from latentlm.weights import load_weights

SCRIPT = Path(__file__).with_name("tiny_run.py")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items() if name != "scale"}


def assert_same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance)


def test_learns_logs_and_exports(tmp_path, margin):
    seen = []
    run = trainer(tmp_path, TinyModel(seed=seed()), steps=40, log_every=8, save_every=100, on_export=seen.append)
    result = run.fit()
    records = read_log(tmp_path / "train.jsonl")
    assert [record["step"] for record in records] == [8, 16, 24, 32, 40]
    assert set(records[0]["losses"]) == {"text", "image", "speech"}
    margin("last loss over the first", records[-1]["loss"] / records[0]["loss"], at_most=0.8)
    assert records[-1]["tokens"] == 40 * 2 * 36
    assert result.finished
    assert result.step == 40
    assert result.losses == records[-1]["losses"]
    assert seen == [tmp_path / "model"]
    loaded, averaged = TinyModel(seed=1), TinyModel(seed=1)
    load_weights(tmp_path / "model/model.safetensors", loaded)
    load_weights(tmp_path / "model/ema.safetensors", averaged)
    assert_same(weights(loaded), weights(run.model))
    with run.ema.applied(run.model):
        assert_same(weights(averaged), weights(run.model))
    assert not torch.equal(averaged.embedding.weight, loaded.embedding.weight)


def test_logged_loss_is_the_mean_over_all_targets_of_the_window(tmp_path):
    run = trainer(tmp_path, steps=3, log_every=3, optimizer={"learning_rate": 1e-12}, model=TinyModel(dropout=0.0))
    run.fit()
    batches = [make_batch(lane, position) for position in range(3) for lane in range(2)]
    model = TinyModel(dropout=0.0)
    for name in ("text", "image", "speech"):
        sums = [model(batch, torch.Generator().manual_seed(batch.seed)).get(name) for batch in batches]
        total = sum(float(value.detach()) for value in sums if value is not None)
        count = sum(batch.target_counts().get(name, 0) for batch in batches)
        assert read_log(tmp_path / "train.jsonl")[0]["losses"][name] == pytest.approx(total / count, rel=1e-5)


class TextOnly(nn.Module):
    """No noise, so that micro-batches and the whole batch see the same."""

    def __init__(self):
        super().__init__()
        self.inner = TinyModel(dropout=0.0)

    def forward(self, batch, generator):
        return self.inner(replace(batch, latents={}), generator)


class Whole:
    """The micro-batches of all lanes as one batch."""

    num_lanes = 1

    def __init__(self):
        self.position = 0

    def next_step(self):
        batches = [make_batch(lane, self.position) for lane in range(4)]
        self.position += 1
        names = ("ids", "positions", "documents", "text_targets", "end_targets")
        joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
        return [replace(batches[0], latents={}, **joined)]

    def state_dict(self):
        return {"lanes": {"0": self.position}}

    def load_state_dict(self, state):
        raise NotImplementedError


def test_micro_batches_equal_one_big_batch(tmp_path):
    """The lanes have unequal numbers of targets: a mean of means would differ."""
    counts = [make_batch(lane, 0).target_counts()["text"] for lane in range(4)]
    assert len(set(counts)) > 1
    parts = trainer(tmp_path / "parts", model=TextOnly(), global_micro_batches=4)
    whole = trainer(tmp_path / "whole", model=TextOnly(), loader=Whole(), global_micro_batches=1)
    parts.fit()
    whole.fit()
    assert_same(weights(parts.model.inner), weights(whole.model.inner), tolerance=1e-5)
    a, b = (read_log(run.folder / "train.jsonl") for run in (parts, whole))
    assert [r["losses"]["text"] for r in a] == pytest.approx([r["losses"]["text"] for r in b], abs=1e-5)


class Examples(nn.Module):
    """A tokenizer's losses: several names, one count."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, batch, generator):
        error = self.linear(batch.media.flatten(1)) - batch.media.flatten(1)
        return {"mse": error.square().mean(1).sum(), "l1": error.abs().mean(1).sum()}


class ExamplesLoader(TinyLoader):
    def next_step(self):
        return [MediaBatch(torch.ones(5, 1, 2, 2), torch.full((5,), 4), seed=1) for _ in range(self.num_lanes)]


def test_examples_divide_every_loss_of_a_tokenizer(tmp_path):
    model = Examples()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.fill_(3.0)
    trainer(tmp_path, model=model, loader=ExamplesLoader(2), steps=1, loss_weights={"mse": 0.5}).fit()
    record = read_log(tmp_path / "train.jsonl")[0]
    assert record["losses"] == pytest.approx({"mse": 4.0, "l1": 2.0})
    assert record["loss"] == pytest.approx(4.0)


def test_each_loss_enters_the_gradient_with_its_weight(tmp_path):
    run = trainer(
        tmp_path,
        model=TinyModel(dropout=0.0),
        steps=1,
        loss_weights={"speech": 0.5},  # beside {"image": 2} in the config
        optimizer={"clip": 1e9},
    )
    run.fit()
    weight, model = {"text": 1.0, "image": 2.0, "speech": 0.5}, TinyModel(dropout=0.0)
    batches = [make_batch(lane, 0) for lane in range(2)]
    for batch in batches:
        for name, value in model(batch, torch.Generator().manual_seed(batch.seed)).items():
            number = sum(each.target_counts()[name] for each in batches)
            (weight[name] * value / number).backward(retain_graph=True)
    for found, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("norm", "after"), [(10.0, 1.0), (0.5, 0.5)])
def test_gradients_are_clipped_to_a_global_norm_of_1(norm, after):
    model = TinyModel()
    gradients, size = Replicated(model, World()), sum(value.numel() for value in model.parameters())
    for value in model.parameters():
        value.grad.fill_(norm / size**0.5)
    assert gradients.clip(OptimizerConfig().clip).item() == pytest.approx(norm, rel=1e-5)
    for value in model.parameters():
        torch.testing.assert_close(value.grad, torch.full_like(value, after / size**0.5))


def test_resume_is_bit_identical(tmp_path):
    """With log lines that straddle the checkpoint, dropout, EMA and every loader position."""
    whole = trainer(tmp_path / "whole", steps=9, log_every=3)
    whole.fit()
    first = trainer(tmp_path / "parts", steps=9, log_every=3)
    original = first._step

    def interrupt(clock):
        original(clock)
        if first.progress.step == 6:
            raise KeyboardInterrupt

    first._step = interrupt
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    torch.manual_seed(99)
    second = trainer(tmp_path / "parts", steps=9, log_every=3, model=TinyModel(seed=5))
    second.fit()
    assert without_clock(tmp_path / "parts/train.jsonl") == without_clock(tmp_path / "whole/train.jsonl")
    found, expected = (run_tensors(run.model, run.phases, run.ema) for run in (second, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert second.loader.state_dict() == whole.loader.state_dict()
    assert second.ema.num_updates == whole.ema.num_updates == 9


def start_script(folder, *settings):
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.Popen([sys.executable, str(SCRIPT), str(folder), *settings], env=environment)


def wait_for_lines(path, count):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not reach {count} lines")


def test_killed_at_a_random_step_and_resumed_in_a_new_process(tmp_path):
    trainer(tmp_path / "whole", steps=90, save_every=4).fit()
    process = start_script(tmp_path / "killed", "steps=90", "save_every=4", "slow=0.1")
    try:
        wait_for_lines(tmp_path / "killed/train.jsonl", int(np.random.default_rng().integers(5, 15)))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = len(read_log(tmp_path / "killed/train.jsonl"))
    assert 4 < reached < 90
    trainer(tmp_path / "killed", steps=90, save_every=4).fit()
    assert without_clock(tmp_path / "killed/train.jsonl") == without_clock(tmp_path / "whole/train.jsonl")
    a, b = ((tmp_path / name / "model/ema.safetensors").read_bytes() for name in ("killed", "whole"))
    assert a == b


def test_sigterm_ends_the_step_saves_and_stops(tmp_path, capsys):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = trainer(tmp_path, steps=9, save_every=100)
    passes = count(1)

    def interrupt(*_) -> None:
        if next(passes) == 11:  # the first of the two micro-batches of step 6
            os.kill(os.getpid(), signal.SIGTERM)

    run.model.register_forward_pre_hook(interrupt)
    result = run.fit()
    assert not result.finished
    assert result.step == 6
    assert "stopped at step 6; checkpoint saved in" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").is_file()  # what there is can be looked at
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert trainer(tmp_path, steps=9, save_every=100).fit().finished
    trainer(tmp_path / "whole", steps=9, save_every=100).fit()
    assert without_clock(tmp_path / "train.jsonl") == without_clock(tmp_path / "whole/train.jsonl")


def test_a_signal_while_it_samples_ends_the_next_step_with_a_checkpoint(tmp_path, capsys):
    interrupt = {"sample_every": 3, "on_sample": lambda model, step: os.kill(os.getpid(), signal.SIGTERM)}
    run = trainer(tmp_path, steps=9, save_every=100, **interrupt)
    assert not run.fit().finished
    assert "stopped at step 4; checkpoint saved in" in capsys.readouterr().err
    assert run.checkpoints.latest().name == "step-00000004"


def test_a_signal_after_the_last_step_changes_nothing(tmp_path, capsys):
    run = trainer(tmp_path, sample_every=8, on_sample=lambda model, step: os.kill(os.getpid(), signal.SIGTERM))
    assert run.fit().finished
    assert "stopped" not in capsys.readouterr().err


def test_non_finite_loss_names_step_lane_and_loss(tmp_path):
    run = trainer(tmp_path, model=Poisoned(12))
    with pytest.raises(NonFiniteLoss, match=r"step 6: loss 'text' is nan in micro-batch lane 1.*step-00000004"):
        run.fit()
    assert [path.name for path in run.checkpoints.complete()] == ["step-00000004"]
    again = trainer(tmp_path)
    assert again.fit().step == 8


def test_non_finite_gradient_is_an_error_too(tmp_path):
    run = trainer(tmp_path)
    run.model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss, match="gradient norm"):
        run.fit()


def test_disk_full_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import torch.distributed.checkpoint.filesystem as filesystem

    run = trainer(tmp_path)
    written = []

    def full(self):
        written.append(1)
        raise OSError(28, "No space left on device")

    def save(original=run.save):
        if run.progress.step == 8:
            monkeypatch.setattr(filesystem.os, "fsync", lambda handle: full(run))
        return original()

    run.save = save
    with pytest.raises(CheckpointError, match=r"step-00000008: checkpoint not written: .*No space left.*step-00000004"):
        run.fit()
    assert written
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def refuse(error):
    def act(*_):
        raise error

    return act


@pytest.mark.parametrize(
    ("place", "error", "name"),
    [
        ("write", SafetensorError("I/O error: No space left on device (os error 28)"), "model/model.safetensors"),
        ("write", OSError(28, "No space left on device"), "model/model.safetensors"),
        ("on_export", OSError(28, "No space left on device"), "model"),
        ("on_export", OSError(28, "No space left on device", "tokenizer.json"), "tokenizer.json"),
        ("on_sample", OSError(28, "No space left on device"), ""),
    ],
)
def test_a_disk_that_is_full_outside_checkpoints_names_the_file(tmp_path, place, error, name):
    run = trainer(tmp_path, steps=1, sample_every=1, **{place: refuse(error)})
    with pytest.raises(OSError, match="No space left on device") as full:
        run.fit()
    assert full.value.filename in (str(tmp_path / name), name)


def test_a_resume_with_nothing_left_says_so_and_starts_nothing(tmp_path, capsys):
    started = []
    trainer(tmp_path, on_start=lambda: started.append(8)).fit()
    assert "nothing left" not in capsys.readouterr().err
    log = (tmp_path / "train.jsonl").read_bytes()
    trainer(tmp_path, on_start=lambda: started.append(7), steps=7).fit()
    assert "nothing left to train: step 8 is the end of the schedule" in capsys.readouterr().err
    assert started == [8]
    assert (tmp_path / "train.jsonl").read_bytes() == log
    trainer(tmp_path, on_start=lambda: started.append(9), steps=9).fit()
    assert started == [8, 9]


def test_resume_refuses_another_run(tmp_path):
    trainer(tmp_path, identity={"model": "a"}).fit()
    with pytest.raises(ValueError, match=r"model = 'a', this run has 'b'"):
        trainer(tmp_path, identity={"model": "b"}).fit()
    with pytest.raises(ValueError, match=r"training.seed = 0, this run has 1"):
        trainer(tmp_path, identity={"model": "a"}, seed=1).fit()
    with pytest.raises(ValueError, match="already has checkpoints"):
        trainer(tmp_path, identity={"model": "a"}).fit(resume=False)
    wider = TinyModel()
    wider.heads["image"].out = nn.Linear(16, 5)
    with pytest.raises(ValueError, match=r"another model or optimiser; \d+ misshaped: model.heads.image.out.weight"):
        trainer(tmp_path, model=wider, identity={"model": "a"}).fit()


def test_more_steps_after_the_end(tmp_path):
    trainer(tmp_path, steps=4).fit()
    assert trainer(tmp_path, steps=6).fit().step == 6
    assert [record["step"] for record in read_log(tmp_path / "train.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_lanes_must_fit(tmp_path):
    with pytest.raises(ValueError, match="global_micro_batches 3 is not a multiple of the 2 processes"):
        Trainer(
            Run(model=TinyModel()),
            TinyLoader(3),
            tiny_config(global_micro_batches=3),
            tmp_path,
            world=World(0, 2, 0, 2),
        )
    with pytest.raises(ValueError, match="loader has 4 lanes"):
        trainer(tmp_path, loader=TinyLoader(4), global_micro_batches=2)


def test_clock_ends_the_run(tmp_path, monkeypatch):
    """A clock on which every step takes a second; the learning rate falls by it."""
    seconds = count()
    monkeypatch.setattr("latentlm.training.trainer.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    run = trainer(tmp_path, steps=10**6, max_minutes=0.5, save_every=10**6)
    result = run.fit()
    assert result.finished
    assert result.step == result.seconds == 30
    optimizer = run.config.optimizer
    expected = [learning_rate_factor(step, step / 30, optimizer) * optimizer.learning_rate for step in range(30)]
    assert [record["learning_rate"] for record in read_log(tmp_path / "train.jsonl")] == pytest.approx(expected)
    assert expected[-1] < 0.01 * max(expected)


def test_sampling_sees_averaged_weights_and_leaves_no_trace(tmp_path):
    seen = []

    def sample(model, step):
        assert not model.training
        seen.append((step, model.embedding.weight.detach().clone()))
        torch.rand(7)
        np.random.random()  # noqa: NPY002

    plain, sampling = trainer(tmp_path / "a"), trainer(tmp_path / "b", sample_every=4, on_sample=sample)
    plain.fit()
    sampling.fit()
    assert [step for step, _ in seen] == [4, 8]
    assert torch.equal(seen[1][1], sampling.ema.tensors()["embedding.weight"])
    assert without_clock(tmp_path / "a/train.jsonl") == without_clock(tmp_path / "b/train.jsonl")


def test_precision_is_bf16_only_where_it_is_native():
    native = torch.cpu.get_capabilities()
    has = native.get("avx512_bf16") or native.get("amx_bf16") or native.get("arm_bf16")
    expected = "bf16" if has and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"  # ONEDNN_MAX_CPU_ISA
    assert resolve_precision(torch.device("cpu"), "auto") == expected
    assert resolve_precision(torch.device("cpu"), "bf16") == "bf16"


def test_bf16_trains(tmp_path):
    seen = []
    run = trainer(tmp_path, steps=2, precision="bf16")
    run.model.transformer.blocks[0].up.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    run.fit()
    assert set(seen) == {torch.bfloat16}
    assert run.model.embedding.weight.dtype == torch.float32
