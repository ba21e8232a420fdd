"""AutoencoderKL of diffusers against ours: tiny random models through files, real configs on the meta device."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from latentlm.interop.checkpoint_files import LoadedTensors
from latentlm.interop.diffusers_vae import IGNORE, KEEP, OLD_ATTENTION, load, read_config, rules, view
from latentlm.interop.mapping import check
from latentlm.tokenizers.conv_image import ConvImageTokenizer

REFERENCE = f"diffusers {diffusers.__version__}"
DOWN, UP, ATTENTION = "DownEncoderBlock2D", "UpDecoderBlock2D", "AttnDownEncoderBlock2D"
TINY = {
    "plain": {"down_block_types": (DOWN, DOWN, DOWN), "layers_per_block": 2},
    "no quant convs": {"down_block_types": (DOWN,) * 3, "use_quant_conv": False, "use_post_quant_conv": False},
    "attention below": {"down_block_types": (DOWN, DOWN, ATTENTION), "norm_num_groups": 2},
}
FOUR = {"down_block_types": (DOWN,) * 4, "up_block_types": (UP,) * 4, "block_out_channels": (128, 256, 512, 512)}
REAL = {
    "Stable Diffusion 1": FOUR | {"layers_per_block": 2, "latent_channels": 4, "sample_size": 512},
    "Stable Diffusion XL": FOUR
    | {"layers_per_block": 2, "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025},
    "FLUX.1": FOUR
    | {"layers_per_block": 2, "latent_channels": 16, "sample_size": 1024, "scaling_factor": 0.3611}
    | {"shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True},
}


def random_vae(**options) -> AutoencoderKL:
    torch.manual_seed(0)
    fixed = {"up_block_types": (UP,) * 3, "block_out_channels": (4, 8, 8), "latent_channels": 3, "sample_size": 16}
    vae = AutoencoderKL(**{"norm_num_groups": 4} | fixed | options).eval().requires_grad_(False)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vae


def rows(grid: torch.Tensor) -> torch.Tensor:
    return grid.flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_encode_and_decode(agree, tmp_path, name):
    vae = random_vae(**TINY[name])
    vae.save_pretrained(tmp_path)
    tokenizer = load(tmp_path)
    pixels, latents = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 4, 4)
    posterior = vae.encode(pixels).latent_dist
    parameters, valid = tokenizer.encode_batch(pixels, None)
    assert valid.all()
    agree("AutoencoderKL encode, mean and log σ²", parameters, rows(posterior.parameters), 1e-4, REFERENCE)
    mean, std = tokenizer.posterior.split(parameters)
    agree("AutoencoderKL encode, mean", mean, rows(posterior.mean), 1e-4, REFERENCE)
    agree("AutoencoderKL encode, std", std, rows(posterior.std), 1e-4, REFERENCE)
    agree("AutoencoderKL decode", tokenizer.decode_batch(rows(latents)), vae.decode(latents).sample, 1e-4, REFERENCE)


@torch.no_grad()
def test_encode_and_decode_in_bf16(agree, tmp_path):
    vae = random_vae(**TINY["plain"])
    vae.save_pretrained(tmp_path)
    vae, tokenizer = vae.bfloat16(), load(tmp_path).bfloat16()
    pixels, latents = torch.randn(2, 3, 16, 16).bfloat16(), torch.randn(2, 3, 4, 4).bfloat16()
    theirs = rows(vae.encode(pixels).latent_dist.parameters)
    agree("AutoencoderKL encode, bf16", tokenizer.encode_batch(pixels, None)[0], theirs, 2e-2, REFERENCE, relative=True)
    ours = tokenizer.decode_batch(rows(latents))
    agree("AutoencoderKL decode, bf16", ours, vae.decode(latents).sample, 2e-2, REFERENCE, relative=True)


def test_files_that_older_releases_wrote(tmp_path):
    """Attention under its old names; a tokenizer inside a pipeline's folder."""
    vae = random_vae(**TINY["plain"])
    vae.save_pretrained(tmp_path / "vae")
    expected = load(tmp_path).state_dict()
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for old, new in OLD_ATTENTION.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, path)
    found = load(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if value.isfinite().all())


@pytest.mark.parametrize("name", REAL)
def test_every_name_of_the_real_models_is_mapped(name):
    with torch.device("meta"):
        theirs = AutoencoderKL(**REAL[name])
        config = read_config(dict(theirs.config), image_size=256)
        ours = ConvImageTokenizer(config)
    source = view(LoadedTensors(name, {}, theirs.state_dict()))
    check(ours, source, rules(config), ignore=IGNORE, keep=KEEP)
    numbers = [sum(p.numel() for p in module.parameters()) for module in (ours, theirs)]
    assert numbers[0] == numbers[1]
    assert config.latent_dim == REAL[name]["latent_channels"]
    assert ours.grid == (32, 32)
