import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import trainer, without_clock

from latentlm.training.checkpoint import Checkpoints
from latentlm.training.distributed import World
from latentlm.training.state import random_state, set_random_state

SCRIPTS = Path(__file__).parent
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(float("nan"))}


def test_keeps_the_last_and_finds_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, world=World())
    assert checkpoints.latest() is None
    for step in (5, 10, 200_000_000, 15):
        checkpoints.save(step, TENSORS, {"step": step})
    assert [path.name for path in checkpoints.complete()] == ["step-00000015", "step-200000000"]
    assert checkpoints.read_state(checkpoints.latest()) == {"step": 200_000_000}


def test_round_trip_in_place_without_pickle(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, world=World())
    path = checkpoints.save(1, TENSORS, {})
    target = {name: torch.zeros_like(value) for name, value in TENSORS.items()}
    checkpoints.load(path, target)
    torch.testing.assert_close(target, TENSORS, equal_nan=True)
    assert {file.suffix for file in path.rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_mismatch_lists_ten_of_each_kind(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, world=World())
    path = checkpoints.save(1, {f"x{i:02}": torch.zeros(2) for i in range(12)} | TENSORS, {})
    with pytest.raises(
        ValueError, match=r"1 missing: c; 12 extra: (x\d\d, ){9}x\d\d; 1 misshaped: a \(2, 3\) instead of"
    ):
        checkpoints.load(path, {"a": torch.zeros(3), "b": torch.zeros(()), "c": torch.zeros(1)})


def damaged(folder, name, damage):
    """The one file of that name in the only checkpoint of a finished run."""
    trainer(folder, keep=1).fit()
    (file,) = (folder / "checkpoints").rglob(name)
    file.write_bytes(damage(file.read_bytes()))
    return file


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("*.safetensors", lambda whole: whole[:-100], "this checkpoint's file is incomplete"),
        ("*.safetensors", lambda whole: whole[:20], "this checkpoint's file is incomplete"),
        ("*.safetensors", lambda whole: b"", "this checkpoint's file is incomplete"),
        ("trainer.json", lambda whole: whole[:-100], "not JSON"),
        ("trainer.json", lambda whole: b"[]", "not a JSON object"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, name, damage, message):
    file = damaged(tmp_path, name, damage)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: {message}"):
        trainer(tmp_path).fit()


def test_random_state_round_trip():
    state = json.loads(json.dumps(random_state()))
    drawn = [random.random(), np.random.random(), torch.rand(3), torch.randn(1)]  # noqa: NPY002
    set_random_state(state)
    again = [random.random(), np.random.random(), torch.rand(3), torch.randn(1)]  # noqa: NPY002
    assert drawn[:2] == again[:2]
    assert torch.equal(torch.cat(drawn[2:]), torch.cat(again[2:]))


STALL = """
import os, sys, time
sys.path.insert(0, {scripts!r})
import latentlm.training.checkpoint as checkpoint
import tiny_run

original = checkpoint.Checkpoints._complete
def stall(self, temporary, final, record):
    if final.name == "step-00000008":
        print("saving", flush=True)
        time.sleep(600)
    original(self, temporary, final, record)
checkpoint.Checkpoints._complete = stall
tiny_run.main([{folder!r}])
"""


def test_killed_while_it_saves(tmp_path):
    """The half-written checkpoint is not taken for one, the one before it is, and the rubbish goes."""
    trainer(tmp_path / "whole").fit()
    folder = tmp_path / "killed"
    code = STALL.format(scripts=str(SCRIPTS), folder=str(folder))
    environment = {"PYTHONPATH": str(SCRIPTS.parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == ["step-00000004", "step-00000008.tmp"]
    trainer(folder).fit()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    assert without_clock(folder / "train.jsonl") == without_clock(tmp_path / "whole/train.jsonl")
