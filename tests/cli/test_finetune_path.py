"""docs/finetuning.md, as its reader types it: validate, train an adapter, generate three ways, merge."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small import clip

from latentlm import cli
from latentlm.media.sound import load_audio

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import finetune

TRAIN = ["train", "finetune", "--set", "data.sources=[{manifest: mine.jsonl}]", "--set", "model.start=start"]
SHORT = ["training.steps=4", "training.optimizer.warmup_steps=1", "training.threads=1", "data.sequence_length=64"]
SPEAK = ["Good morning.", "--to", "speech", "--steps", "2", "--max-seconds", "0.5"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """mine.jsonl of two recordings and the model `start`; the commands run here."""
    generator = np.random.default_rng(0)
    words = (("Good morning.", clip(generator, 9000)), ("How are you?", clip(generator, 5000)))
    finetune.write_manifest(iter(words), tmp_path / "data").rename(tmp_path / "data" / "mine.jsonl")
    finetune.random_start(tmp_path / "data" / "start", 0)
    monkeypatch.chdir(tmp_path / "data")
    return tmp_path / "data"


def refused(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def sound(name: str) -> list[float]:
    return load_audio(name).samples.tolist()


def test_an_adapter_is_trained_used_and_merged(folder, capsys):
    pytest.importorskip("peft")
    cli.main(["data", "validate", "mine.jsonl"])
    assert "2 documents, segments: 2 text, 2 speech" in capsys.readouterr().out
    settings = [*SHORT, "training.adapter={rank: 16, alpha: 32}", "training.optimizer.learning_rate=0.0005"]
    cli.main([*TRAIN, *(word for setting in settings for word in ("--set", setting)), "--out", "runs/mine"])
    assert capsys.readouterr().out == "trained: runs/mine/model\n"
    assert json.loads(Path("runs/mine/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "start"

    cli.main(["generate", "runs/mine", *SPEAK, "--out", "run.wav"])
    cli.main(["generate", "runs/mine/model", *SPEAK, "--out", "model.wav"])
    cli.main(["generate", "start", *SPEAK, "--adapter", "runs/mine", "--out", "adapter.wav"])
    cli.main(["merge", "start", "runs/mine", "--out", "merged"])
    cli.main(["generate", "merged", *SPEAK, "--out", "merged.wav"])
    cli.main(["generate", "start", *SPEAK, "--out", "start.wav"])
    assert sound("run.wav") == sound("model.wav") == sound("adapter.wav") == sound("merged.wav") != sound("start.wav")

    capsys.readouterr()
    again = ["generate", "runs/mine", *SPEAK, "--adapter", "runs/mine", "--out", "twice.wav"]
    assert "this adapter was trained on start, but this model has other weights; if the adapter is merged" in refused(
        again, capsys
    )
    assert "merged: is already there" in refused(["merge", "start", "runs/mine", "--out", "merged"], capsys)
    assert "runs/mine: already holds a run" in refused([*TRAIN, "--out", "runs/mine"], capsys)
