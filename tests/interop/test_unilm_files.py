"""A checkpoint of the authors' code: as a user meets it, and everything that may be wrong with it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_unilm import CONFIG, VAE_CONFIG, golden, load_tiny, shrink, write_checkpoint

import latentlm
from latentlm import cli
from latentlm.interop import unilm


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    return write_checkpoint(tmp_path / "checkpoint")


def refused(checkpoint, message: str) -> str:
    with pytest.raises(ValueError, match=message) as error:
        load_tiny(checkpoint)
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite_state(checkpoint, **changes) -> None:
    path = checkpoint / "other_state.pth"
    torch.save(torch.load(path, weights_only=True) | changes, path)


def test_a_converted_checkpoint_draws_its_classes(checkpoint, monkeypatch, capsys):
    shrink(monkeypatch)
    target = checkpoint.parent / "ours"
    cli.main(["convert", str(checkpoint), str(target), "--from", "unilm"])
    assert sorted(path.suffix for path in target.rglob("*") if path.is_file()).count(".pth") == 0
    picture = checkpoint.parent / "7.png"
    arguments = ["--to", "image", "--out", str(picture), "--guidance", "1.5", "--steps", "3"]
    cli.main(["generate", str(target), "7", *arguments])
    assert picture.is_file()
    raw, average = (latentlm.load(target, weights=weights).model.state_dict() for weights in ("raw", "ema"))
    for ours, weights in ((raw, "raw"), (average, "ema")):
        theirs = load_tiny(checkpoint, weights).model.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not torch.equal(raw["embed_tokens.weight"], average["embed_tokens.weight"])


def test_what_a_user_may_ask_of_it(checkpoint):
    pipeline = load_tiny(checkpoint)
    (first,) = pipeline.generate("3", to="image", steps=2, guidance=2.0)
    (again,) = pipeline.generate(" 3 ", to="image", steps=2, guidance=2.0)
    (other,) = pipeline.generate("4", to="image", steps=2, guidance=2.0)
    assert first.size == (16, 16)
    assert first.tobytes() == again.tobytes() != other.tobytes()
    with pytest.raises(ValueError, match=r"no class '10', did you mean '1'\? \(this model knows 10: 0 … 9\)"):
        pipeline.generate("10", to="image")
    with pytest.raises(ValueError, match="makes pictures of classes; it writes no text"):
        pipeline.generate("3", to="text")


def test_guidance_compares_with_the_null_class(checkpoint):
    """The two branches of a step are the class and <BOD>, which is their null class, each alone."""
    pipeline = load_tiny(checkpoint)
    table = golden("transformer")[0]["y_embedder.embedding_table.weight"]
    raw = load_tiny(checkpoint, "raw")
    bod = raw.model.special.bod["image"]
    assert torch.equal(raw.model.embed_tokens.weight[bod], table[10])
    assert torch.equal(raw.model.embed_tokens.weight[:10], table[:10])
    plain, guided = (pipeline.generate("3", to="image", steps=2, guidance=g, seed=1)[0] for g in (1.0, 3.0))
    assert plain.tobytes() != guided.tobytes()


def test_names_with_the_prefix_of_parallel_training(checkpoint):
    path = checkpoint / "model.safetensors"
    expected = load_tiny(checkpoint, "raw").model.state_dict()
    save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, path)
    found = load_tiny(checkpoint, "raw").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_without_an_average(checkpoint):
    rewrite_state(checkpoint, ema=None)
    assert not unilm.has_average(checkpoint)
    found, expected = (load_tiny(checkpoint, weights).model.state_dict() for weights in ("ema", "raw"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type: Input should be 'epsilon' or 'v_prediction', got 'sample'"),
        ({"ddpm_beta_schedule": "laplace"}, "ddpm_beta_schedule: .*'cosine' or 'linear', got 'laplace'"),
        ({"model": "DiT-XL"}, "model: .*got 'DiT-XL'"),
        ({"hidden_siz": 3}, "unknown key 'hidden_siz', did you mean 'hidden_size'"),
        ({"depth": None}, "give model .* or hidden_size, depth and num_heads"),
        ({"vae": "kl16.ckpt"}, r"kl16.ckpt: no such tokenizer file \(config.json: vae 'kl16.ckpt'\)"),
        ({"image_size": 32}, "vae.pt: its pictures have 16 pixels, config.json says 32"),
        ({"num_classes": 9}, "misshaped: y_embedder.embedding_table.weight"),
        ({"depth": 3}, "28 averaged tensors, this model has 33"),
    ],
)
def test_a_field_of_the_config_is_named(checkpoint, changes, message):
    (checkpoint / "config.json").write_text(json.dumps(CONFIG | changes))
    refused(checkpoint, message)


def test_files_that_are_missing_are_named_with_what_they_are_for(checkpoint):
    (checkpoint / "config.json").unlink()
    assert '{"model": "Transformer-L", ' in refused(checkpoint, "put config.json there")
    (checkpoint / "config.json").write_text("[")
    refused(checkpoint, "config.json: not JSON")
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    (checkpoint / "model.safetensors").unlink()
    rewrite_state(checkpoint, ema=None)
    refused(checkpoint, r"expected model.safetensors")
    (checkpoint / "other_state.pth").unlink()
    refused(checkpoint, "other_state.pth: no such file; .*scale of the latents")


def test_scales_that_are_no_numbers(checkpoint):
    rewrite_state(checkpoint, scaling_factor=None)
    refused(checkpoint, "scaling_factor is None, expected a number")
    rewrite_state(checkpoint, scaling_factor=0.0)
    refused(checkpoint, "scaling_factor is 0.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_arch": "vit-large"}, "encoder_arch 'vit-large' is not supported, only beit3-base, vit-base"),
        ({"decoder_arch": "cnn"}, "decoder_arch 'cnn' is not supported"),
        ({"latent_size": None}, "latent_size is missing"),
        ({"latent_size": 8}, "misshaped: encoder_post_processor.dense.weight"),
    ],
)
def test_a_field_of_the_tokenizer_is_named(checkpoint, changes, message):
    config = {name: value for name, value in (VAE_CONFIG | changes).items() if value is not None}
    torch.save({"config": config, "model": golden("sigma_vae")[0]}, checkpoint / "vae.pt")
    refused(checkpoint, message)
