"""Autoencoders of latent diffusion as image tokenizers: `AutoencoderKL` of diffusers, and KL-16 in its original file.

Place in the flow: interop, their files ──▶ `ConvImageTokenizer`. diffusers itself is not needed.
Their `scaling_factor` and `shift_factor` are not used: they were measured on other pictures, some on a single batch
(PAPER §1.6). The tokenizer is returned uncalibrated; `calibrate` measures both on your own pictures.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from pydantic import ValidationError

from ..config import ConvImageTokenizerConfig, describe
from ..errors import UserError
from ..tokenizers.conv_image import ConvImageTokenizer
from .checkpoint_files import CheckpointFiles, locate
from .mapping import Rule, fill
from .view import Derived, View

DIFFUSERS = (
    (r"encoder\.stages\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"decoder\.stages\.(\d+)\.", r"decoder.up_blocks.\1."),
    (r"encoder\.downs\.(\d+)\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"decoder\.ups\.(\d+)\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"\.middle\.block_1\.", ".mid_block.resnets.0."),
    (r"\.middle\.block_2\.", ".mid_block.resnets.1."),
    (r"\.middle\.attention\.", ".mid_block.attentions.0."),
    (r"\.blocks\.", ".resnets."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"\.attention\.out\.", ".to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
"""Substitutions from our names to theirs, applied by `re.sub` in this order."""

ORIGINAL = (
    (r"encoder\.stages\.(\d+)\.", r"encoder.down.\1."),
    (r"decoder\.stages\.(\d+)\.", r"decoder.up.\1."),
    (r"encoder\.downs\.(\d+)\.", r"encoder.down.\1.downsample.conv."),
    (r"decoder\.ups\.(\d+)\.", r"decoder.up.\1.upsample.conv."),
    (r"\.middle\.attention\.", ".mid.attn_1."),
    (r"\.middle\.", ".mid."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.skip\.", ".nin_shortcut."),
    (r"\.attention\.out\.", ".proj_out."),
)
COMMON = (
    (r"\bto_latent\.", "quant_conv."),
    (r"from_latent\.", "post_quant_conv."),
    (r"(norm|conv)_([12])\.", r"\1\2."),
)

QKV = {"diffusers": ("to_q", "to_k", "to_v"), "original": ("q", "k", "v")}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in files written before diffusers 0.18, for instance Stable Diffusion 1."""

KEEP = ("latent_mean", "latent_std", "posterior.*")
IGNORE = ("loss.*",)
"""The discriminator that latent diffusion saves with its autoencoder."""

SUPPORTED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "mid_block_add_attention": True,
}
ATTENTION_BLOCK = "AttnDownEncoderBlock2D"
UNUSED = {"sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}
DEFAULTS = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
"""Values of fields that a config.json leaves out."""


def read_config(fields: dict, image_size: int | None = None) -> ConvImageTokenizerConfig:
    """Our config from the `fields` of an `AutoencoderKL`'s config.json.

    image_size: width and height of the pictures; default: the field `sample_size`. Raises UserError naming a field that
    is not supported, and its value.
    """
    given = {name: value for name, value in fields.items() if not name.startswith("_")}
    unknown = sorted(given.keys() - DEFAULTS.keys() - SUPPORTED.keys() - UNUSED)
    if unknown:
        raise UserError(f"AutoencoderKL config: unknown field {unknown[0]!r} ({given[unknown[0]]!r})")
    for name, value in SUPPORTED.items():
        _require(name, given.get(name, value), value)
    theirs = DEFAULTS | given
    stages = len(theirs["block_out_channels"])
    down, up = list(theirs["down_block_types"]), list(theirs["up_block_types"])
    deepest = down[-1:] == [ATTENTION_BLOCK]
    _require("down_block_types", down, ["DownEncoderBlock2D"] * (stages - deepest) + [ATTENTION_BLOCK] * deepest)
    _require("up_block_types", up, ["UpDecoderBlock2D"] * stages)
    _require("use_post_quant_conv", theirs["use_post_quant_conv"], theirs["use_quant_conv"])
    size = image_size or given.get("sample_size", 32)
    return _config(
        image_size=size[0] if isinstance(size, list | tuple) else size,
        latent_dim=theirs["latent_channels"],
        channels=tuple(theirs["block_out_channels"]),
        num_blocks=theirs["layers_per_block"],
        norm_groups=theirs["norm_num_groups"],
        deepest_attention=deepest,
        latent_conv=theirs["use_quant_conv"],
    )


def _config(**fields) -> ConvImageTokenizerConfig:
    try:
        return ConvImageTokenizerConfig(**fields)
    except ValidationError as error:
        raise UserError(describe(error, ConvImageTokenizerConfig)) from None


def original_config(files: CheckpointFiles, image_size: int, norm_groups: int = 32) -> ConvImageTokenizerConfig:
    """Our config from the shapes in a latent diffusion file, which do not show `norm_groups`: it is always 32 there."""

    def count(pattern: str) -> int:
        found = [re.match(pattern, name) for name in files.names]
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    stages, blocks = count(r"encoder\.down\.(\d+)\."), count(r"encoder\.down\.0\.block\.(\d+)\.")
    if not stages or not blocks or "post_quant_conv.weight" not in files.names:
        raise UserError(f"{files.path}: not an autoencoder of latent diffusion (no encoder.down.0.block.0, or no "
                         "post_quant_conv)")  # fmt: skip
    deepest = f"encoder.down.{stages - 1}.attn.0.norm.weight"
    return _config(
        image_size=image_size,
        latent_dim=files.shape("post_quant_conv.weight")[0],
        channels=tuple(files.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(stages)),
        num_blocks=blocks,
        norm_groups=norm_groups,
        deepest_attention=deepest in files.names,
        latent_conv=True,
    )


def rules(config: ConvImageTokenizerConfig, layout: str = "diffusers") -> list[Rule]:
    """Rules for files of the layout "diffusers" or "original", as `view` shows them."""
    with torch.device("meta"):
        names = [name for name, _ in ConvImageTokenizer(config).named_parameters()]
    result = []
    for name in names:
        if ".attention.qkv." in name:
            stem, kind = name.split(".attention.qkv.")
            parts = tuple(f"{_theirs(stem + '.', config, layout)}{part}.{kind}" for part in QKV[layout])
            result.append(Rule(name, parts, "cat"))
        else:
            result.append(Rule(name, (_theirs(name, config, layout),)))
    return result


def view(files: CheckpointFiles) -> View:
    """`files` under current names and without the prefix "model." of training scripts; the 1×1 convolutions of
    attention as matrices."""
    prefix = "model." if any(name.startswith("model.encoder.") for name in files.names) else ""

    def rename(name: str) -> str:
        stem, _, kind = name.removeprefix(prefix).rpartition(".")
        parent, _, last = stem.rpartition(".")
        return f"{parent}.{OLD_ATTENTION[last]}.{kind}" if last in OLD_ATTENTION else f"{stem}.{kind}".lstrip(".")

    matrices = re.compile(r".*(attentions\.\d+|attn\.\d+|mid\.attn_1)\.(to_.*|q|k|v|proj_out)\.weight")
    names = [rename(name) for name in files.names]
    return View(files, {n: Derived((n,), lambda w: w.flatten(1)) for n in names if matrices.fullmatch(n)}, rename)


def load(path: str | Path, image_size: int | None = None) -> ConvImageTokenizer:
    """The tokenizer in a diffusers folder, a pipeline's repository (its folder vae/), or a latent diffusion file.

    path: a folder, a file or a hub id. image_size: width and height of the pictures; required without a config.json.
    Raises UserError, one line, for files that are missing, do not fit or are not supported.
    """
    path = locate(path)
    if (path / "vae").is_dir() and not (path / "config.json").is_file():
        path = path / "vae"
    return from_files(CheckpointFiles.open(path), image_size)


def from_files(files: CheckpointFiles, image_size: int | None = None) -> ConvImageTokenizer:
    """As `load`, for open files."""
    seen = view(files)
    if files.config:
        config, layout = read_config(files.config, image_size), "diffusers"
    elif image_size is None:
        raise UserError(f"{files.path}: there is no config.json with the size of the pictures; give an image size")
    else:
        config, layout = original_config(seen, image_size), "original"
    tokenizer = ConvImageTokenizer(config)
    fill(tokenizer, seen, rules(config, layout), ignore=IGNORE, keep=KEEP)
    return tokenizer.eval()


def _theirs(name: str, config: ConvImageTokenizerConfig, layout: str) -> str:
    if layout == "original":  # their decoder counts its stages from the finest
        last = len(config.channels) - 1
        name = re.sub(r"decoder\.(stages|ups)\.(\d+)", lambda m: f"decoder.{m[1]}.{last - int(m[2])}", name)
    for pattern, replacement in (DIFFUSERS if layout == "diffusers" else ORIGINAL) + COMMON:
        name = re.sub(pattern, replacement, name)
    return name


def _require(name: str, value: object, supported: object) -> None:
    if value != supported:
        raise UserError(f"AutoencoderKL config: {name} {value!r} is not supported, only {supported!r}")
