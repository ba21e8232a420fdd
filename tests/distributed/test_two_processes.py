"""Really two processes, under torchrun on gloo: the same step as one, replicated and sharded, and resumed across."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentlm.training.distributed import launch
from latentlm.training.logs import read_log

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_run import TinyLoader, TinyModel, adapted_model, real_loader, real_model, tiny_config

from latentlm.training.objective import Run
from latentlm.training.trainer import Trainer

SCRIPT = Path(__file__).parents[1] / "training" / "tiny_run.py"
STEADY = {"steps": 8, "global_micro_batches": 4, "optimizer": {"schedule": "constant"}}
SLOWER = "optimizer.learning_rate=0.001"
SETTINGS = ["global_micro_batches=4", "optimizer.schedule=constant"]


def alone(folder, **values):
    config = tiny_config(**{**STEADY, **values})
    trainer = Trainer(Run(model=TinyModel()), TinyLoader(config.global_micro_batches), config, folder)
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs of two processes follow each other in one launch; `whole` is the one-process run they must equal."""
    folder = tmp_path_factory.mktemp("runs")
    alone(folder / "whole")
    slower = tiny_config(**{**STEADY, "optimizer": {"schedule": "constant", "learning_rate": 0.001}})
    Trainer(Run(model=real_model()), real_loader(4), slower, folder / "latentlm_whole").fit()
    Trainer(Run(model=adapted_model()), real_loader(4), slower, folder / "adapter_whole").fit()
    alone(folder / "one_to_two", steps=4)
    alone(folder / "one_to_shards", steps=4)
    environment = {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    arguments = [
        ["replicate"],
        ["shard", "parallel=shard"],
        ["latentlm", "real=1", SLOWER],
        ["latentlm_shard", "real=1", "parallel=shard", SLOWER],
        ["adapter_shard", "real=1", "adapter=1", "parallel=shard", SLOWER],
        ["one_to_two"],
        ["one_to_shards", "parallel=shard"],
        ["two_to_one", "steps=4"],
        ["shards_to_one", "parallel=shard", "steps=4"],
        ["poisoned", "poison=11"],
        ["full", "full=1", "parallel=shard"],
        ["muon", "parallel=shard", "optimizer.kind=muon"],
        ["odd", "global_micro_batches=3"],
        ["signalled", "signal=1", "sample_every=3", "save_every=100"],
    ]
    argv = [str(SCRIPT)]
    for name, *extra in arguments:
        argv += [str(folder / name), *SETTINGS, *extra, "--"]
    code = launch(2, argv[:-1], env=environment)
    assert code == 0
    return folder


@pytest.fixture
def assert_equal_runs(margin) -> Callable[[Path, Path], None]:
    """Returns a check that two runs are equal but for the order in which they add."""

    def check(a: Path, b: Path) -> None:
        for name in ("model", "ema"):
            left, right = (load_file(folder / "model" / f"{name}.safetensors") for folder in (a, b))
            torch.testing.assert_close(left, right, rtol=0, atol=float("inf"), equal_nan=True)  # names, shapes, NaN
            differences = [(left[key] - right[key]).abs().nan_to_num().max() for key in left]
            margin(f"largest difference, {name}", max(differences), at_most=1e-5)
        left, right = (read_log(folder / "train.jsonl") for folder in (a, b))
        assert [record["step"] for record in left] == [record["step"] for record in right] == list(range(1, 9))
        assert [record["tokens"] for record in left] == [record["tokens"] for record in right]
        assert [record["losses"].keys() for record in left] == [record["losses"].keys() for record in right]
        losses = [abs(x["losses"][k] - y["losses"][k]) for x, y in zip(left, right, strict=True) for k in x["losses"]]
        margin("largest difference, losses", max(losses), at_most=1e-5)
        norms = [abs(x["gradient_norm"] - y["gradient_norm"]) for x, y in zip(left, right, strict=True)]
        margin("largest difference, gradient norms", max(norms), at_most=1e-4)

    return check


@pytest.mark.parametrize("name", ["replicate", "shard"])
def test_two_processes_equal_one(runs, name, assert_equal_runs):
    """Some micro-batches have no image or no speech, so a head is idle on one rank and busy on the other."""
    assert_equal_runs(runs / name, runs / "whole")


@pytest.mark.parametrize("name", ["latentlm", "latentlm_shard"])
def test_the_real_model_on_two_processes_equals_one(runs, name, assert_equal_runs):
    steps = read_log(runs / "latentlm_whole/train.jsonl")
    for modality in ("image", "speech"):
        assert any(modality not in step["losses"] for step in steps)
    assert_equal_runs(runs / name, runs / "latentlm_whole")


def test_an_adapter_on_two_sharded_processes_equals_one(runs, assert_equal_runs):
    """Most weights of a unit are frozen: they are gathered, but have no gradient to reduce."""
    assert_equal_runs(runs / "adapter_shard", runs / "adapter_whole")


def test_shards_are_really_parts(runs):
    sizes = [path.stat().st_size for path in sorted((runs / "shard/checkpoints/step-00000008/state").iterdir())]
    whole = sum(path.stat().st_size for path in (runs / "whole/checkpoints/step-00000008/state").iterdir())
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * whole


@pytest.mark.parametrize("name", ["one_to_two", "one_to_shards"])
def test_a_run_of_one_process_goes_on_with_two(runs, name, assert_equal_runs):
    assert_equal_runs(runs / name, runs / "whole")


@pytest.mark.parametrize("name", ["two_to_one", "shards_to_one"])
def test_a_run_of_two_processes_goes_on_with_one(runs, name, tmp_path, assert_equal_runs):
    assert read_log(runs / name / "train.jsonl")[-1]["step"] == 4
    shutil.copytree(runs / name, tmp_path / name)
    alone(tmp_path / name)
    assert_equal_runs(tmp_path / name, runs / "whole")


def errors(runs, name):
    texts = [(runs / f"{name}.{rank}.error").read_text() for rank in range(2)]
    assert texts[0] == texts[1]
    return texts[0]


def test_a_nan_on_one_rank_stops_all_with_the_same_words(runs):
    text = errors(runs, "poisoned")
    assert text.startswith("NonFiniteLoss: step 6: loss 'text' is nan in micro-batch lane 1;")
    assert "step-00000004" in text


def test_a_full_disk_on_one_rank_stops_all(runs):
    assert "No space left on device; there is none before it" in errors(runs, "full")
    assert list((runs / "full/checkpoints").iterdir()) == []


def test_a_signal_to_one_rank_outside_a_step_stops_all_after_the_next(runs):
    assert read_log(runs / "signalled/train.jsonl")[-1]["step"] == 4
    assert [path.name for path in (runs / "signalled/checkpoints").iterdir()] == ["step-00000004"]


def test_what_cannot_run_on_two_processes_says_so(runs):
    assert "muon needs whole matrices" in errors(runs, "muon")
    assert "training.global_micro_batches 3 is not a multiple of the 2 processes" in errors(runs, "odd")


def test_launch_returns_the_exit_code(tmp_path, capfd):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)")
    assert launch(1, [str(script)]) != 0
    capfd.readouterr()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        launch(0, [])
