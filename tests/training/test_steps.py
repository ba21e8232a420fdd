"""A run that has not ended is loaded from its latest complete checkpoint, and the step is said."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import latentlm
from latentlm.checkpoint import read_metadata, resolve, write_config
from latentlm.config import parse_recipe
from latentlm.errors import Notice, UserError
from latentlm.training.latentlm import tokenizer_folder
from latentlm.training.run import train
from latentlm.weights import save_weights


@pytest.fixture(scope="module")
def start(tmp_path_factory, model, tokenizers) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_config(folder, model, tokenizers)
    save_weights(folder / "model.safetensors", model.state_dict())
    return folder


def recipe(model: dict, **training):
    return parse_recipe(
        {
            "kind": "latentlm",
            "model": model,
            "data": {
                "sources": [{"name": "digits", "task": "text_to_image", "limit": 8}],
                "sequence_length": 64,
                "rows": 1,
            },
            "training": {"steps": 4, "save_every": 2, "keep": 9, "precision": "fp32", "threads": 1, "ema": 0.5}
            | {"optimizer": {"learning_rate": 0.01, "warmup_steps": 1}}
            | training,
        }
        | ({} if "start" in model else {"tokenizers": {"image": "tiny", "text": {"kind": "bytes"}}})
    )


SMALL = {"transformer": {"width": 32, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}}
WAYS = {
    "new": {},
    "tied": {},
    "start": {},
    "freeze": {"freeze": ["embed_tokens", "transformer"]},
    "adapter": {"adapter": {"rank": 2}},
    "no average": {"ema": 0.0},
}


@pytest.fixture(scope="module", params=WAYS)
def run(request, tmp_path_factory, start) -> Path:
    """A finished run of four steps, with checkpoints of two and of four."""
    if request.param == "adapter":
        pytest.importorskip("peft")
    model = SMALL if request.param in ("new", "no average") else {"start": str(start)}
    if request.param == "tied":
        model = SMALL | {"transformer": SMALL["transformer"] | {"tied_embeddings": True}}
    folder = tmp_path_factory.mktemp("run") / "run"
    train(recipe(model, **WAYS[request.param]), folder)
    return folder


def weights_of(folder: Path, weights: str = "ema") -> dict:
    return latentlm.load(folder, weights=weights).model.state_dict()


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def unfinished(run: Path, target: Path) -> Path:
    """A copy of the run as it was before its end."""
    return Path(shutil.copytree(run, target, ignore=lambda folder, names: ["model"] if folder == str(run) else []))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_first_run_is_its_latest_checkpoint(run, tmp_path, weights):
    folder = unfinished(run, tmp_path / "copy")
    with pytest.warns(Notice, match=r"copy: loaded step 4, the checkpoint step-00000004 of the run$"):
        loaded = weights_of(folder, weights)
    assert equal(loaded, weights_of(run, weights))
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    (folder / "checkpoints" / "step-00000004.tmp").mkdir()
    with pytest.warns(Notice, match="loaded step 2"):
        earlier = weights_of(folder, weights)
    assert not equal(loaded, earlier)


def test_a_checkpoint_is_loaded_by_its_own_path(run):
    with pytest.warns(Notice, match="loaded step 4"):
        last = weights_of(run / "checkpoints" / "step-00000004")
    assert equal(last, weights_of(run))
    with pytest.warns(Notice, match="loaded step 2"):
        assert not equal(last, weights_of(run / "checkpoints" / "step-00000002"))


@pytest.mark.parametrize("run", ["new"], indirect=True)
def test_a_model_in_a_folder_with_the_name_of_a_step_is_a_model(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "step-00000400")
    assert equal(weights_of(tmp_path / "step-00000400"), weights_of(run))


def test_a_finished_run_is_its_model_without_a_word(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latentlm.load(run)
    assert resolve(run) == run / "model"
    assert read_metadata(run)["step"] == 4


@pytest.mark.parametrize("run", ["new"], indirect=True)
def test_a_resumed_run_is_its_latest_checkpoint_and_not_its_old_model(run, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(run, folder)
    train(recipe(SMALL, steps=6), folder, resume=True)
    six = weights_of(folder)
    shutil.rmtree(folder / "model")
    shutil.copytree(run / "model", folder / "model")
    with pytest.warns(Notice, match="loaded step 6"):
        loaded = weights_of(folder)
    assert equal(loaded, six)
    assert not equal(loaded, weights_of(folder / "model"))


@pytest.mark.parametrize("run", ["new"], indirect=True)
def test_a_checkpoint_in_training_gives_answers_tokenizers_and_its_recipe(run, tmp_path):
    folder = unfinished(run, tmp_path / "copy")
    with pytest.warns(Notice, match="loaded step 4"):
        pipeline = latentlm.load(folder)
    assert pipeline.generate("3", to="image", steps=2)
    assert read_metadata(folder)["recipe"]["kind"] == "latentlm"
    assert (tokenizer_folder(str(folder), "image") / "config.json").is_file()


@pytest.mark.parametrize("run", ["freeze"], indirect=True)
def test_weights_that_do_not_train_must_be_those_that_the_run_began_with(run, tmp_path, start, model, tokenizers):
    folder = unfinished(run, tmp_path / "copy")
    path = folder / "setup" / "config.json"
    fields = json.loads(path.read_text())
    write_config(tmp_path / "other", model, tokenizers)
    save_weights(tmp_path / "other" / "model.safetensors", {n: v + 1 for n, v in model.state_dict().items()})
    fields["metadata"]["recipe"]["model"]["start"] = str(tmp_path / "other")
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"step-00000004: the run began with .*other, whose weights have changed since"):
        latentlm.load(folder)
    fields["metadata"]["recipe"]["model"]["start"] = None
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="holds only the trained weights"):
        latentlm.load(folder)


@pytest.mark.parametrize("run", ["new"], indirect=True)
def test_what_cannot_be_loaded_is_one_line(run, tmp_path):
    folder = unfinished(run, tmp_path / "copy")
    (file,) = (folder / "checkpoints" / "step-00000004" / "state").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="this checkpoint's file is incomplete"):
        latentlm.load(folder)
    file.write_bytes(whole)
    shutil.move(folder / "setup", tmp_path / "setup")
    for place in (folder, folder / "checkpoints" / "step-00000004"):
        with pytest.raises(UserError, match=r"step-00000004: cannot be loaded, because its run has no setup/"):
            latentlm.load(place)
    shutil.move(tmp_path / "setup", folder / "setup")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match=r"copy: a run without a checkpoint yet; it writes one every"):
        latentlm.load(folder)


def test_a_tokenizer_run_that_continues_is_its_exported_model_and_this_is_said(tmp_path):
    sizes = {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2}
    recipe = {"kind": "image_tokenizer", "tokenizer": sizes | {"encoder_layers": 1, "decoder_layers": 1}}
    recipe["data"] = {"sources": [{"name": "digits", "limit": 8}], "batch_size": 4}
    recipe["training"] = {"steps": 1, "precision": "fp32", "threads": 1}
    train(parse_recipe(recipe), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(tmp_path / "run") == tmp_path / "run" / "model"
    state = tmp_path / "run" / "checkpoints" / "step-00000001" / "trainer.json"
    later = (tmp_path / "run" / "model" / "config.json").stat().st_mtime + 10
    os.utime(state, (later, later))
    with pytest.warns(Notice, match="exported; the run has continued to step 1 and has not ended yet"):
        assert resolve(tmp_path / "run") == tmp_path / "run" / "model"
