"""A run resumes on its own documents only, and a run that fails at the start leaves nothing behind."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from small import picture

from latentlm import cli, hardware
from latentlm.config import parse_recipe
from latentlm.errors import UserError
from latentlm.media.picture import save_image
from latentlm.training.run import train


def texts(path, *lines):
    path.write_text("".join(json.dumps({"segments": [{"text": line}]}) + "\n" for line in lines), encoding="utf-8")
    return path


def recipe(source, **training):
    return parse_recipe(
        {
            "kind": "latentlm",
            "model": {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}},
            "data": {"sequence_length": 32, "rows": 1, "sources": [source]},
            "training": {"steps": 2, "save_every": 1, "threads": 1} | training,
        }
    )


@pytest.mark.parametrize("key", ["manifest", "path"])
def test_other_texts_are_refused_by_the_name_of_their_source(tmp_path, key):
    own, other = texts(tmp_path / "own.jsonl", "one", "two"), texts(tmp_path / "other.jsonl", "one", "three")
    train(recipe({key: str(own)}), tmp_path / "run")
    with pytest.raises(UserError, match=r"trained on other documents: data source '\S+other\.jsonl'.*cannot resume"):
        train(recipe({key: str(other)}, steps=3), tmp_path / "run", resume=True)
    moved = texts(tmp_path / "moved.jsonl", "one", "two")
    train(recipe({key: str(moved)}, steps=3), tmp_path / "run", resume=True)


def test_a_manifest_that_changed_is_refused_and_its_flags_count(tmp_path):
    own = texts(tmp_path / "own.jsonl", "one", "two")
    train(recipe({"manifest": str(own)}), tmp_path / "run")
    given = {"segments": [{"text": "one", "condition": True}, {"text": "two"}]}
    changed = tmp_path / "changed.jsonl"
    changed.write_text((json.dumps(given) + "\n") * 2, encoding="utf-8")
    with pytest.raises(UserError, match=r"changed\.jsonl"):
        train(recipe({"manifest": str(changed)}, steps=3), tmp_path / "run", resume=True)


def test_a_checkpoint_of_an_older_release_still_resumes(tmp_path):
    own = texts(tmp_path / "own.jsonl", "one", "two")
    train(recipe({"manifest": str(own)}), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000002" / "trainer.json"
    record = json.loads(path.read_text())
    assert len(record["identity"].pop("data.sources")) == 1
    path.write_text(json.dumps(record))
    train(recipe({"manifest": str(own)}, steps=3), tmp_path / "run", resume=True)


def test_another_number_of_sources_is_said(tmp_path):
    own = texts(tmp_path / "own.jsonl", "one", "two")
    train(recipe({"manifest": str(own)}), tmp_path / "run")
    two = recipe({"manifest": str(own)}, steps=3)
    two = two.model_copy(update={"data": two.data.model_copy(update={"sources": two.data.sources * 2})})
    with pytest.raises(UserError, match="trained on 1 data sources, this run has 2; cannot resume"):
        train(two, tmp_path / "run", resume=True)


def tokenizer_recipe(source, **training):
    small = {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2}
    return parse_recipe(
        {
            "kind": "image_tokenizer",
            "tokenizer": small,
            "data": {"sources": [source], "batch_size": 2},
            "training": {"steps": 2, "save_every": 1, "threads": 1} | training,
        }
    )


def pictures(folder, name, seed, num=3):
    generator = np.random.default_rng(seed)
    lines = []
    for number in range(num):
        save_image(picture(generator, 8), folder / f"{name}-{number}.png")
        lines.append(json.dumps({"segments": [{"image": f"{name}-{number}.png"}]}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(folder / f"{name}.jsonl")


def test_a_tokenizer_resumes_on_its_own_media(tmp_path):
    own, other = pictures(tmp_path, "own", 0), pictures(tmp_path, "other", 1)
    train(tokenizer_recipe({"manifest": own}), tmp_path / "run")
    with pytest.raises(UserError, match=r"other documents: data source '\S+other\.jsonl'"):
        train(tokenizer_recipe({"manifest": other}, steps=3), tmp_path / "run", resume=True)
    train(tokenizer_recipe({"manifest": own}, steps=3), tmp_path / "run", resume=True)


def test_a_resume_that_trains_nothing_does_not_say_trained(tmp_path, capsys):
    own = texts(tmp_path / "own.jsonl", "one", "two")
    train(recipe({"manifest": str(own)}), tmp_path / "run")
    assert capsys.readouterr().out == f"trained: {tmp_path / 'run' / 'model'}\n"
    cli.main(["train", str(tmp_path / "run"), "--resume"])
    assert capsys.readouterr().out == f"nothing left to train: {tmp_path / 'run' / 'model'}\n"


def test_without_peft_nothing_is_written_and_the_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    own = texts(tmp_path / "own.jsonl", "one")
    monkeypatch.chdir(tmp_path)
    settings = ["--set", f"data.sources=[{{manifest: {own}}}]", "--set", "training.adapter={}"]
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", "finetune", *settings, *more])
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(
            "training.adapter needs peft, which is not installed: pip install peft\n"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def test_a_resume_keeps_its_number_of_threads_whatever_is_free_now(tmp_path, monkeypatch, capsys):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(hardware, "TRAINED_PER_THREAD", 1)
    own = texts(tmp_path / "own.jsonl", "one", "two")
    try:
        for free, steps, said in ((2, 2, "threads     2"), (1, 3, "threads     2")):
            monkeypatch.setattr(hardware, "num_cores", lambda free=free: free)
            train(recipe({"manifest": str(own)}, threads=None, steps=steps), tmp_path / "run", resume=steps > 2)
            assert said in capsys.readouterr().err.splitlines()
            assert torch.get_num_threads() == 2
        train(recipe({"manifest": str(own)}, threads=1, steps=4), tmp_path / "run", resume=True)
        assert torch.get_num_threads() == 1, "a number that is asked for is obeyed"
    finally:
        torch.set_num_threads(before)
