"""Checkpoint directories: what is saved comes back; what does not fit is named."""

import json
import shutil

import numpy as np
import pytest
import torch

from latentlm.checkpoint import write_config
from latentlm.generation.pipeline import load
from latentlm.weights import save_weights


@pytest.fixture
def folder(tmp_path, model, tokenizers):
    write_config(tmp_path, model, tokenizers, {"steps": 3})
    save_weights(tmp_path / "model.safetensors", model.state_dict())
    return tmp_path


def test_a_saved_model_generates_the_same(folder, pipeline):
    loaded = load(folder)
    one, two = (np.asarray(p.generate("ab", "image", steps=3, guidance=2.0)[0]) for p in (pipeline, loaded))
    assert np.array_equal(one, two)


def test_ema_is_preferred_and_raw_is_an_option(folder, model):
    changed = {name: value + 1 for name, value in model.state_dict().items()}
    save_weights(folder / "ema.safetensors", changed)
    assert torch.equal(load(folder).model.text_head.weight, model.text_head.weight + 1)
    assert torch.equal(load(folder, weights="raw").model.text_head.weight, model.text_head.weight)


def test_missing_and_extra_weights_are_counted_and_named(folder, model):
    weights = dict(model.state_dict())
    weights["stranger"] = weights.pop("text_head.weight")
    save_weights(folder / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"model.safetensors.*1 missing: text_head.weight; 1 extra: stranger"):
        load(folder)


def test_another_format_version_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(ValueError, match="format_version is 99"):
        load(folder)


def test_no_pickle_is_read(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/at/all"])
def test_a_model_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match="no model"):
        load(name)


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config.json"):
        load(tmp_path)


def test_weights_in_bf16_load_into_fp32(folder, model):
    save_weights(folder / "model.safetensors", model.state_dict(), torch.bfloat16)
    weight = load(folder).model.text_head.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, model.text_head.weight, atol=1e-2, rtol=1e-2)


def test_a_shrunk_model_is_half_the_size_and_draws_nearly_the_same(folder, tmp_path_factory, pipeline):
    from latentlm.checkpoint import shrink

    target = tmp_path_factory.mktemp("shrunk")
    shrink(folder, target)
    size, whole = ((f / "model.safetensors").stat().st_size for f in (target, folder))
    assert size < 0.6 * whole
    loaded = load(target)
    torch.testing.assert_close(loaded.model.text_head.weight, pipeline.model.text_head.weight, atol=1e-2, rtol=1e-2)
    assert loaded.generate("ab", "image", steps=3)[0].size == (8, 8)


@pytest.mark.parametrize("name", ["image", "speech"])
def test_a_tokenizer_that_is_missing_is_named(folder, name):
    shutil.rmtree(folder / "tokenizers" / name)
    with pytest.raises(ValueError, match=f"tokenizers/{name}: no such tokenizer, and the model has {name}"):
        load(folder)


def test_a_tokenizer_of_other_latents_is_named(folder):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    dim = fields["modalities"]["image"]["latent_dim"]
    path.write_text(json.dumps(fields | {"modalities": fields["modalities"] | {"image": {"latent_dim": dim + 1}}}))
    with pytest.raises(ValueError, match=f"tokenizers/image: latent_dim is {dim}, the model's is {dim + 1}"):
        load(folder)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        (None, "not a LatentLM config .'modalities' is missing"),
        ([1], r"config.json: modalities: Input should be a valid dictionary"),
        ({"image": {"latent_dim": "x"}}, r"config.json: modalities.image.latent_dim: Input should be a valid integer"),
    ],
)
def test_modalities_that_are_none_are_named(folder, modalities, message):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | {"modalities": modalities}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_device_that_is_not_there_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device 'cuda' was asked for, but torch sees no CUDA device$"):
        load(folder, device="cuda")
    assert load(folder, device="auto").model.text_head.weight.device.type == "cpu"
