"""Autoencoders of other projects as tokenizers: what is refused, and that a loaded one serves a recipe."""

import json

import pytest
import torch
from PIL import Image

from latentlm.config import parse_recipe
from latentlm.interop import diffusers_vae
from latentlm.interop.mapping import export
from latentlm.tokenizers import load_tokenizer
from latentlm.training.run import train

CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.42.1",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
    "scaling_factor": 0.18215,
}


def write(folder, **changes):
    """A random tokenizer of ours in the layout of diffusers."""
    config = diffusers_vae.read_config(CONFIG)
    torch.manual_seed(0)
    tokenizer = diffusers_vae.ConvImageTokenizer(config)
    export_named(tokenizer, diffusers_vae.rules(config), folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return tokenizer


def export_named(tokenizer, rules, folder):
    """`export` wants a rule for everything; the normalisation is ours alone."""
    names = torch.nn.Module()
    for name, child in tokenizer.named_children():
        if name != "posterior":
            names.add_module(name, child)
    export(names, rules, folder)


def test_a_loaded_tokenizer_waits_for_its_calibration(tmp_path):
    written = write(tmp_path)
    tokenizer = diffusers_vae.load(tmp_path)
    assert torch.equal(tokenizer.encoder.conv_in.weight, written.encoder.conv_in.weight)
    assert tokenizer.latent_std.isnan()
    with pytest.raises(ValueError, match="not calibrated"):
        tokenizer.encode([Image.new("RGB", (8, 8))])
    assert diffusers_vae.load(tmp_path, image_size=16).num_latents == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported, only 'silu'"),
        ({"in_channels": 4}, "in_channels 4 is not supported, only 3"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention False"),
        ({"down_block_types": ["DownEncoderBlock2D", "DownBlock2D"]}, "down_block_types .*DownBlock2D"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "up_block_types .*AttnUp"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv False"),
        ({"z_channels": 4}, "unknown field 'z_channels'"),
        ({"latent_channels": 8}, "misshaped: "),
        ({"layers_per_block": 2}, "missing: .*resnets"),
        ({"block_out_channels": [8]}, "down_block_types"),
    ],
)
def test_what_we_do_not_support_is_named(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        diffusers_vae.load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_original_file_needs_an_image_size_and_may_hold_a_discriminator(tmp_path):
    config = diffusers_vae.read_config(CONFIG | {"use_quant_conv": True})
    torch.manual_seed(0)
    written = diffusers_vae.ConvImageTokenizer(config.model_copy(update={"channels": (32, 32), "norm_groups": 32}))
    export_named(written, diffusers_vae.rules(written.config, "original"), tmp_path)
    tensors = diffusers_vae.CheckpointFiles.open(tmp_path)
    state = {name: tensors.read(name) for name in tensors.names} | {"loss.logvar": torch.zeros(())}
    path = tmp_path / "kl16.ckpt"
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match="give an image size"):
        diffusers_vae.load(path)
    with pytest.raises(ValueError, match=r"^image_size 17 is not a multiple"):
        diffusers_vae.load(path, image_size=17)
    tokenizer = diffusers_vae.load(path, image_size=8)
    for name, value in written.named_parameters():
        assert torch.equal(tokenizer.get_parameter(name), value)
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="not an autoencoder of latent diffusion"):
        diffusers_vae.load(path, image_size=8)


def test_a_recipe_trains_on_its_latents(tmp_path):
    write(tmp_path)
    tokenizer = diffusers_vae.load(tmp_path)
    pictures = [Image.new("RGB", (8, 8), (value, 255 - value, 0)) for value in range(0, 256, 32)]
    tokenizer.calibrate([tokenizer.batch(pictures)])
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert again.fingerprint() == tokenizer.fingerprint()
    raw = {
        "kind": "latentlm",
        "tokenizers": {"image": str(tmp_path / "tokenizer"), "text": {"kind": "classes"}},
        "model": {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}},
        "data": {
            "sources": [{"name": "digits", "task": "text_to_image", "limit": 8}],
            "sequence_length": 48,
            "rows": 2,
        },
        "training": {"steps": 2, "save_every": 2, "threads": 1},
    }
    folder = train(parse_recipe(raw), tmp_path / "run")
    assert (folder / "tokenizers" / "image" / "config.json").is_file()
