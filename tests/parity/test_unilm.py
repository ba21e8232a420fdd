"""The authors' class-conditional code against ours: golden files of tiny sizes, names and shapes of the real ones.

tests/golden/README.md says how the files were made. Nothing of theirs runs here.
"""

import json
from pathlib import Path

import pytest
import torch
from tiny_unilm import BIAS, GOLDEN, REFERENCE, SCALE, golden, load_tiny, write_checkpoint

from latentlm.checkpoint import modality_specs
from latentlm.config import ConvImageTokenizerConfig, ImageTokenizerConfig
from latentlm.generation.engine import Engine
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.prompts import as_prompt
from latentlm.generation.request import Request
from latentlm.interop import diffusers_vae, unilm, unilm_vae
from latentlm.interop.checkpoint_files import CheckpointFiles, LoadedTensors
from latentlm.interop.mapping import check, fill
from latentlm.model.latentlm import LatentLM, ModalitySpec
from latentlm.tokenizers.conv_image import ConvImageTokenizer
from latentlm.tokenizers.image import ImageTokenizer
from latentlm.tokenizers.text import TextTokenizer

NAMES = json.loads((GOLDEN / "names.json").read_text())
LABELS, SEEDS, STEPS, GUIDANCE = (3, 7, 0), (11, 12, 13), 6, 2.5
TINY_VIT = {"image_size": 16, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2, "class_token": True}
TINY_VIT |= {"encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint-1000"))


@pytest.fixture(scope="module")
def pipeline(checkpoint) -> Pipeline:
    return load_tiny(checkpoint, "raw")


def hidden_states(model: LatentLM, latents: torch.Tensor) -> torch.Tensor:
    """(B, T, D) of [class, latents but the last], as the engine embeds them; latents (B, C, h, w)."""
    B, _, T = latents.flatten(2).shape
    values = latents.flatten(2).transpose(1, 2)[:, :-1]
    x = torch.cat((model.embed_tokens(torch.tensor(LABELS))[:, None], model.embed_latents["image"](values)), dim=1)
    return model.transformer(x, torch.arange(T).expand(B, T), torch.zeros(B, T))


@torch.no_grad()
def test_hidden_states_and_head(agree, pipeline):
    model, (_, tensors) = pipeline.model, golden("transformer")
    head = model.heads["image"]
    condition = head.condition(hidden_states(model, tensors["latents"]))
    agree("unilm hidden states", condition, tensors["condition"], 1e-4, REFERENCE)
    noisy = tensors["noisy"].flatten(2).transpose(1, 2)
    output = head.denoise(noisy, condition + head.timestep(tensors["timesteps"]))
    agree("unilm diffusion head", output, tensors["head"].flatten(2).transpose(1, 2), 1e-4, REFERENCE)


@torch.no_grad()
def test_the_average(agree, checkpoint):
    model, (_, tensors) = load_tiny(checkpoint).model, golden("transformer")
    condition = model.heads["image"].condition(hidden_states(model, tensors["latents"]))
    agree("unilm hidden states, EMA", condition, tensors["ema_condition"], 1e-4, REFERENCE)
    assert not torch.allclose(tensors["ema_condition"], tensors["condition"], atol=0.1)


def test_guided_generation(agree, pipeline):
    """Prompt in, latents out, through the engine; a request's noise is what the reference was given."""
    _, tensors = golden("transformer")
    first = torch.randn(4, generator=torch.Generator().manual_seed(SEEDS[0]))
    assert torch.equal(first, tensors["noise"][0, 0]), "this torch draws other noise than the golden file's"
    requests = [
        Request(as_prompt(str(label)), "image", guidance=GUIDANCE, steps=STEPS, seed=seed)
        for label, seed in zip(LABELS, SEEDS, strict=True)
    ]
    collected: list[list[torch.Tensor]] = [[] for _ in requests]
    for event in Engine.of(pipeline.model, pipeline._active_requests(requests)).run():
        if event.kind == "latent":
            collected[event.handle].append(event.value)
    generated = torch.stack([torch.stack(latents) for latents in collected])  # (B, N, C)
    theirs = tensors["generated"].flatten(2).transpose(1, 2)
    agree("unilm guided generation", generated, theirs, 1e-4, REFERENCE)
    (picture,) = pipeline.generate(str(LABELS[0]), to="image", guidance=GUIDANCE, steps=STEPS, seed=SEEDS[0])
    with torch.inference_mode():
        pixels = pipeline.tokenizers["image"].decode_batch(theirs[:1] / SCALE - BIAS)
    assert pipeline.tokenizers["image"].unbatch(pixels, [16])[0].tobytes() == picture.tobytes()


def test_the_normalisation_and_the_noise_are_theirs(pipeline):
    tokenizer = pipeline.tokenizers["image"]
    z = torch.randn(16, 4)
    torch.testing.assert_close(tokenizer.denormalise(z), z / SCALE - BIAS)
    assert tokenizer.config.posterior.c_sigma == pytest.approx(0.75 / 0.8 * SCALE)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["vit", "beit3"])
def test_sigma_vae(agree, encoder):
    weights, tensors = golden("sigma_vae" if encoder == "vit" else "sigma_vae_beit3")
    config = ImageTokenizerConfig(**TINY_VIT, encoder_sub_norm=encoder == "beit3")
    tokenizer = unilm_vae.load_sigma_vae(LoadedTensors(GOLDEN, {}, weights), config)
    mean, valid = tokenizer.encode_batch(tensors["images"], None)
    assert valid.all()
    agree(f"unilm σ-VAE encode, {encoder}", mean, tensors["mean"].flatten(2).transpose(1, 2), 1e-4, REFERENCE)
    pixels = tokenizer.decode_batch(tensors["latents"].flatten(2).transpose(1, 2))
    agree(f"unilm σ-VAE decode, {encoder}", pixels, tensors["decoded"], 1e-4, REFERENCE)
    with pytest.raises(ValueError, match="not calibrated"):
        tokenizer.decode([torch.zeros(16, 4)])


@torch.no_grad()
def test_kl16(agree):
    """Their file; the golden one has norms of 8 groups, real ones have 32, which no file says."""
    weights, tensors = golden("kl16")
    shape = {"image_size": 8, "latent_dim": 4, "channels": (8, 16), "num_blocks": 1, "norm_groups": 8}
    config = ConvImageTokenizerConfig(**shape, deepest_attention=True, latent_conv=True)
    source = diffusers_vae.view(LoadedTensors(GOLDEN, {}, {f"model.{name}": t for name, t in weights.items()}))
    found = diffusers_vae.original_config(source, 8, norm_groups=8)
    assert found == config
    tokenizer = ConvImageTokenizer(config).eval()
    fill(tokenizer, source, diffusers_vae.rules(config, "original"), keep=diffusers_vae.KEEP)
    mean, std = tokenizer.posterior.split(tokenizer.encode_batch(tensors["images"], None)[0])
    agree("KL-16 encode, mean", mean, tensors["mean"].flatten(2).transpose(1, 2), 1e-4, REFERENCE)
    agree("KL-16 encode, std", std, tensors["std"].flatten(2).transpose(1, 2), 1e-4, REFERENCE)
    pixels = tokenizer.decode_batch(tensors["latents"].flatten(2).transpose(1, 2))
    agree("KL-16 decode", pixels, tensors["decoded"], 1e-4, REFERENCE)


# ------------------------------------------------------------------- real sizes


class Shapes(CheckpointFiles):
    """Names and shapes without values."""

    def __init__(self, shapes: dict):
        super().__init__(GOLDEN, {}, {name: tuple(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("name", unilm.SIZES)
def test_every_name_of_the_real_models_is_mapped(name):
    config = unilm.read_config({"model": name, "prediction_type": "epsilon", "vae": "kl16.ckpt"}, 256)
    text = TextTokenizer.of_classes([str(i) for i in range(1000)])
    with torch.device("meta"):
        model = LatentLM(config, text.vocab_size, text.special, {"image": ModalitySpec(16, 256)})
    for prefix in ("", "module."):
        source = Shapes({prefix + key: shape for key, shape in NAMES[name].items()})
        check(model, unilm.view(source), unilm.rules(config))
    order = [part for rule in unilm.rules(config) for part in rule.sources][:-1]
    assert order == list(NAMES[name]), "the average is a list in the order of their parameters"


@pytest.mark.parametrize("encoder", unilm_vae.ENCODERS)
def test_every_name_of_the_real_sigma_vae_is_mapped(encoder):
    fields = {"latent_size": 16, "std": 0.75, "encoder_arch": encoder, "decoder_arch": "vit-base"}
    config = unilm_vae.read_config(fields, 0.2)
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    source = unilm_vae.view(Shapes(NAMES[f"sigma-vae {encoder}"]), config)
    check(tokenizer, source, unilm_vae.rules(config), ignore=unilm_vae.IGNORE, keep=unilm_vae.KEEP)
    assert modality_specs({"image": tokenizer})["image"] == ModalitySpec(16, 256)


def test_every_name_of_the_real_kl16_is_mapped():
    source = diffusers_vae.view(Shapes({f"model.{name}": shape for name, shape in NAMES["KL-16"].items()}))
    config = diffusers_vae.original_config(source, 256)
    assert config.channels == (128, 128, 256, 256, 512)
    assert config.deepest_attention
    with torch.device("meta"):
        tokenizer = ConvImageTokenizer(config)
    check(tokenizer, source, diffusers_vae.rules(config, "original"), keep=diffusers_vae.KEEP)
