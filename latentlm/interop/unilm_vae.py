"""The authors' σ-VAE as our image tokenizer: ViT decoder, ViT or BEiT-3 encoder (PAPER §1.7, §2.1).

Place in the flow: interop, a tokenizer file of `microsoft/unilm` ──▶ `ImageTokenizer`; `unilm.py` calls it.
Their class token and its position are one parameter here, their sum.
"""

from __future__ import annotations

import torch

from ..config import ImageTokenizerConfig, PosteriorConfig
from ..errors import UserError
from ..tokenizers.image import ImageTokenizer
from .checkpoint_files import CheckpointFiles
from .mapping import Rule, fill, weight_and_bias
from .view import Derived, View

ENCODERS = ("beit3-base", "vit-base")
DECODERS = ("vit-base",)
BASE = {"width": 768, "encoder_layers": 12, "decoder_layers": 12, "num_heads": 12}

VIT_BLOCK = {
    "norm1": "attention_norm",
    "attn.proj": "attention.out",
    "norm2": "ffn_norm",
    "mlp.fc1": "ffn.0",
    "mlp.fc2": "ffn.2",
}
BEIT3_BLOCK = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.inner_attn_ln": "attention.norm",
    "self_attn.out_proj": "attention.out",
    "final_layer_norm": "ffn_norm",
    "ffn.fc1": "ffn.0",
    "ffn.ffn_layernorm": "ffn.2",
    "ffn.fc2": "ffn.3",
}
FIRST_POSITION = 2
"""The position of BEiT-3's class token, which is its first."""

KEEP = ("latent_mean", "latent_std", "posterior.*")
IGNORE = ("encoder.vision_embed.mask_token",)
"""Used in BEiT-3's own training only."""


def read_config(fields: dict, scale: float) -> ImageTokenizerConfig:
    """Our config from the `fields` of "config" in a tokenizer file.

    scale: the scaling factor stored with the image model. Their σ is drawn from N(0, (std/0.8)²) in raw units; ours is
    relative to the std of the latents. Fields that are not read here have no effect in their code. Raises UserError
    naming a field that is missing or not supported.
    """
    for name, known, default in (("encoder_arch", ENCODERS, ENCODERS[0]), ("decoder_arch", DECODERS, DECODERS[0])):
        if fields.get(name, default) not in known:
            raise UserError(f"σ-VAE config: {name} {fields[name]!r} is not supported, only {', '.join(known)}")
    for name in ("latent_size", "std"):
        if name not in fields:
            raise UserError(f"σ-VAE config: {name} is missing")
    return ImageTokenizerConfig(
        image_size=fields.get("img_size", 256),
        patch_size=fields.get("patch_size", 16),
        latent_dim=fields["latent_size"],
        class_token=True,
        encoder_sub_norm=fields.get("encoder_arch", ENCODERS[0]) == "beit3-base",
        posterior=PosteriorConfig(kind="sigma", c_sigma=fields["std"] / 0.8 * scale),
        **BASE,
    )


def rules(config: ImageTokenizerConfig) -> list[Rule]:
    """Rules for files as `view` shows them."""
    result = [
        *weight_and_bias("to_latent", "encoder_post_processor.dense"),
        *weight_and_bias("from_latent", "decoder.patch_embed.proj"),
        *weight_and_bias("patch_out.0", "decoder_post_processor.fc1"),
        *weight_and_bias("patch_out.2", "decoder_post_processor.fc2"),
        *_vit_rules("decoder", config.decoder_layers),
    ]
    if not config.encoder_sub_norm:
        return [
            *result,
            *weight_and_bias("patch_in", "encoder.patch_embed.proj"),
            *_vit_rules("encoder", config.encoder_layers),
        ]
    result += weight_and_bias("patch_in", "encoder.vision_embed.proj") + weight_and_bias(
        "encoder.norm", "encoder.encoder.layer_norm"
    )
    result += [Rule(f"encoder.{name}", (f"encoder.{name}",)) for name in ("positions", "class_token")]
    for i in range(config.encoder_layers):
        ours, theirs = f"encoder.blocks.{i}", f"encoder.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            qkv = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
            result.append(Rule(f"{ours}.attention.qkv.{kind}", qkv, "cat"))
        for name, our_name in BEIT3_BLOCK.items():
            result += weight_and_bias(f"{ours}.{our_name}", f"{theirs}.{name}")
    return result


def view(files: CheckpointFiles, config: ImageTokenizerConfig) -> View:
    """`files` with patch convolutions as matrices, positions without a batch dimension, class tokens plus their
    position, and zero biases for k."""
    patches = [f"{part}.proj.weight" for part in ("encoder.patch_embed", "encoder.vision_embed", "decoder.patch_embed")]
    derived = {name: Derived((name,), lambda w: w.flatten(1)) for name in patches}
    for side, num_layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        if side == "encoder" and config.encoder_sub_norm:
            token, table = "encoder.vision_embed.cls_token", "encoder.encoder.embed_positions.weight"
            derived["encoder.positions"] = Derived((table,), lambda p: p[FIRST_POSITION + 1 :])
            derived["encoder.class_token"] = Derived((token, table), lambda t, p: t[0, 0] + p[FIRST_POSITION])
            continue
        token, table = f"{side}.cls_token", f"{side}.pos_embed"
        derived[f"{side}.positions"] = Derived((table,), lambda p: p[0, 1:])
        derived[f"{side}.class_token"] = Derived((token, table), lambda t, p: t[0, 0] + p[0, 0])
        for i in range(num_layers):
            biases = (f"{side}.blocks.{i}.attn.q_bias", f"{side}.blocks.{i}.attn.v_bias")
            make = Derived(biases, lambda q, v: torch.cat((q, torch.zeros_like(q), v)))
            derived[f"{side}.blocks.{i}.attn.qkv.bias"] = make
    return View(files, derived)


def load_sigma_vae(files: CheckpointFiles, config: ImageTokenizerConfig) -> ImageTokenizer:
    """The tokenizer, uncalibrated. Raises UserError listing the names that do not fit."""
    tokenizer = ImageTokenizer(config)
    fill(tokenizer, view(files, config), rules(config), ignore=IGNORE, keep=KEEP)
    return tokenizer.eval()


def _vit_rules(side: str, num_layers: int) -> list[Rule]:
    result = [Rule(f"{side}.{name}", (f"{side}.{name}",)) for name in ("positions", "class_token")]
    result += weight_and_bias(f"{side}.norm", f"{side}.fc_norm")
    for i in range(num_layers):
        block = f"{side}.blocks.{i}"
        result += weight_and_bias(f"{block}.attention.qkv", f"{block}.attn.qkv")
        for name, our_name in VIT_BLOCK.items():
            result += weight_and_bias(f"{block}.{our_name}", f"{block}.{name}")
    return result
