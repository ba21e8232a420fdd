"""torchrun itself, as on a cluster: it starts what `--processes` otherwise does, with the losses of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latentlm.config import load_recipe
from latentlm.training.logs import read_log
from latentlm.training.run import train

ROOT = Path(__file__).parents[2]


def small_recipe():
    return load_recipe(
        "demo",
        {
            "model": {
                "transformer": {"width": 32, "num_layers": 1, "num_heads": 2, "context_length": 64},
                "head": {"num_layers": 1},
            },
            "data.sources": [{"name": "emoji", "task": "text_to_image", "limit": 4}],
            "data.sequence_length": 48,
            "data.rows": 2,
            "tokenizers.text": {"kind": "bytes"},
            "training": {"steps": 3, "global_micro_batches": 2, "log_every": 1, "save_every": 3, "precision": "fp32"},
        },
    )


def test_torchrun_takes_the_steps_of_one_process(tmp_path):
    train(small_recipe(), tmp_path / "one")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe().model_dump(mode="json")), encoding="utf-8")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "latentlm", "train"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "small.yaml"), "--out", str(tmp_path / "two")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"trained: {tmp_path / 'two' / 'model'}\n") == 1
    one, two = (read_log(tmp_path / name / "train.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"]
        assert a["losses"] == pytest.approx(b["losses"], abs=1e-5)
