"""Checkpoints of the authors' class-conditional code, `microsoft/unilm`, folder LatentLM (PAPER §1.1, §2.1).

Place in the flow: interop, a folder that their training wrote ──▶ `Pipeline`. The folder holds
    model.safetensors   raw weights               other_state.pth   scale and bias of the latents, the average (EMA)
    config.json         arguments of their command line, which their files do not contain; written by the user: `Run`
    the tokenizer       KL-16 in its original file, or their σ-VAE
A class becomes a text: "207" is one token, behind which the picture starts. Their null class is our <BOD>, which is the
whole prompt of the guidance branch. So prompts, guidance and training work as for every other model.
Their code has no text head; ours is zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator

from ..checkpoint import modality_specs
from ..config import Config, DiffusionConfig, DiffusionHeadConfig, ModelConfig, TransformerConfig, describe, read_json
from ..errors import UserError
from ..generation.pipeline import Pipeline
from ..model.latentlm import LatentLM
from ..tokenizers.image import PictureTokenizer
from ..tokenizers.text import TextTokenizer
from . import diffusers_vae, unilm_vae
from .checkpoint_files import CheckpointFiles, LoadedTensors, locate, unpickle
from .mapping import Rule, fill
from .quantised import refuse_quantised_config
from .view import Derived, View

SIZES = {  # width, layers, heads, head layers, mlp_ratio
    "Transformer-13B": (5120, 40, 40, 3, 6),
    "Transformer-7B": (4096, 32, 32, 3, 6),
    "Transformer-3B": (2560, 32, 20, 3, 6),
    "Transformer-XL": (2048, 24, 16, 3, 6),
    "Transformer-Large": (1536, 24, 12, 3, 6),
    "Transformer-Medium": (1024, 24, 16, 3, 6),
    "Transformer-Base": (768, 12, 12, 3, 6),
    "Transformer-H": (1280, 40, 20, 12, 4),
    "Transformer-L": (1024, 32, 16, 8, 4),
    "Transformer-B": (768, 24, 12, 6, 4),
}
EXAMPLE = '{"model": "Transformer-L", "prediction_type": "v_prediction", "image_size": 256, "vae": "kl16.ckpt"}'
DEEPSPEED = Path("pytorch_model") / "mp_rank_00_model_states.pt"
TABLE, NO_HEAD = "y_embedder.embedding_table.weight", "text head (zeros)"


class Run(Config):
    """config.json of a checkpoint: arguments of their command line, under their names.

    model: one of their sizes; hidden_size … num_kv_heads describe any other. vae: the tokenizer's file, relative to the
    folder.
    """

    model: Literal[tuple(SIZES)] | None = None
    prediction_type: Literal["epsilon", "v_prediction"]
    vae: str
    image_size: int = 256
    num_classes: int = 1000
    ddpm_num_steps: int = 1000
    ddpm_beta_schedule: Literal["cosine", "linear"] = "cosine"
    hidden_size: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    diffusion_depth: int = 3
    mlp_ratio: float = 4.0
    num_kv_heads: int | None = None
    posi_scale: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _sized(self):
        if self.model is None and None in (self.hidden_size, self.depth, self.num_heads):
            raise UserError(f"give model (one of {', '.join(SIZES)}) or hidden_size, depth and num_heads")
        return self


def read_run(fields: dict) -> Run:
    """The validated fields of config.json. Raises UserError naming one that is unknown, missing or not supported."""
    try:
        return Run.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"LatentLM config.json: {describe(error, Run)}; an example: {EXAMPLE}") from None


def read_config(fields: dict, num_latents: int) -> ModelConfig:
    """Our config from the fields of config.json, for pictures of `num_latents` latents.

    Raises UserError as `read_run` does.
    """
    run = read_run(fields)
    ours = (run.hidden_size, run.depth, run.num_heads, run.diffusion_depth, run.mlp_ratio)
    width, layers, heads, head_layers, ratio = SIZES[run.model] if run.model else ours
    ffn = int(width * ratio * 2 / 3 / 64) * 64
    return ModelConfig(
        transformer=TransformerConfig(
            width=width,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=run.num_kv_heads,
            ffn_width=ffn,
            norm_weight=False,
            rope_base=10000.0 * run.posi_scale,
            rope_interleaved=True,
            rope_closed=True,
            context_length=num_latents + 2,
        ),
        # their single norm between backbone and head is our backbone's last one
        head=DiffusionHeadConfig(num_layers=head_layers, ffn_width=ffn, condition_norm=False, latent_bias=True),
        diffusion=DiffusionConfig(
            schedule=run.ddpm_beta_schedule,
            prediction="v" if run.prediction_type == "v_prediction" else "epsilon",
            num_timesteps=run.ddpm_num_steps,
        ),
    )


def rules(config: ModelConfig) -> list[Rule]:
    """Rules for files as `view` shows them, in the order of their parameters: their EMA's list has the same."""
    head = "heads.image"
    result = [
        Rule("embed_latents.image.weight", ("x_embedder.proj.weight",)),
        Rule("embed_latents.image.bias", ("x_embedder.proj.bias",)),
        Rule(f"{head}.latent_in.weight", ("noisy_x_embedder.proj.weight",)),
        Rule(f"{head}.latent_in.bias", ("noisy_x_embedder.proj.bias",)),
        Rule(f"{head}.timestep.up.weight", ("t_embedder.mlp.0.weight",)),
        Rule(f"{head}.timestep.down.weight", ("t_embedder.mlp.2.weight",)),
        Rule("embed_tokens.weight", (TABLE,)),
    ]
    for i in range(config.transformer.num_layers):
        ours, theirs = f"transformer.blocks.{i}", f"blocks.{i}"
        result.append(Rule(f"{ours}.attention.qkv.weight", (f"{theirs}.attn.qkv.weight",)))
        result.append(Rule(f"{ours}.attention.out.weight", (f"{theirs}.attn.proj.weight",)))
        result += _ffn(f"{ours}.ffn", f"{theirs}.mlp")
    for i in range(config.head.num_layers):
        ours, theirs = f"{head}.blocks.{i}", f"diffusion_blocks.{i}"
        result += _ffn(f"{ours}.ffn", f"{theirs}.mlp")
        result.append(Rule(f"{ours}.modulation.weight", (f"{theirs}.adaLN_modulation.1.weight",)))
    return [
        *result,
        Rule(f"{head}.condition_in.weight", ("condition_layer.linear.weight",)),
        Rule(f"{head}.final.out.weight", ("final_layer.linear.weight",)),
        Rule(f"{head}.final.modulation.weight", ("final_layer.adaLN_modulation.1.weight",)),
        Rule("text_head.weight", (NO_HEAD,)),
    ]


def view(files: CheckpointFiles) -> View:
    """`files` with 1×1 convolutions as matrices, the class table as our embedding, and no prefix "module."."""

    def tokens(table: torch.Tensor) -> torch.Tensor:
        """The rows of our embedding: classes, four special tokens, <BOD> of pictures (the null class), of speech."""
        zeros = table.new_zeros(4, table.shape[1])
        return torch.cat((table[:-1], zeros, table[-1:], zeros[:1]))

    derived = {
        "x_embedder.proj.weight": Derived(("x_embedder.proj.weight",), lambda w: w.flatten(1)),
        "noisy_x_embedder.proj.weight": Derived(("noisy_x_embedder.proj.weight",), lambda w: w.flatten(1)),
        TABLE: Derived((TABLE,), tokens),
        NO_HEAD: Derived((TABLE,), lambda table: torch.zeros_like(tokens(table))),
    }
    return View(files, derived, lambda name: name.removeprefix("module."))


def load(path: str | Path, weights: str = "ema") -> Pipeline:
    """The model and tokenizer of a checkpoint folder or hub id.

    weights: "ema" (raw where there is no average) or "raw". Raises UserError, one line, for files that are missing, do
    not fit or are not supported.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights must be 'ema' or 'raw', got {weights!r}")
    folder = locate(path)
    fields = _fields(folder)
    run, state = read_run(fields), _other_state(folder)
    tokenizer = _tokenizer(folder, run, 1 / state["scaling_factor"], -state["bias_factor"])
    text = TextTokenizer.of_classes([str(i) for i in range(run.num_classes)])
    config = read_config(fields, tokenizer.num_latents)
    tokenizers = {"text": text, "image": tokenizer}
    with torch.device("meta"):
        model = LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers))
    averaged = _average(folder, config, state)
    fill(model, view(averaged if weights == "ema" and averaged else _raw(folder)), rules(config))
    return Pipeline(model, tokenizers)


def has_average(path: str | Path) -> bool:
    """Whether a checkpoint holds averaged weights beside the raw ones."""
    return _other_state(locate(path)).get("ema") is not None


def _fields(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: the files do not say how the model was built; put config.json there: {EXAMPLE}")
    fields = read_json(path)
    refuse_quantised_config(folder, fields)
    return fields


def _other_state(folder: Path) -> dict:
    path = folder / "other_state.pth"
    if not path.is_file():
        raise UserError(f"{path}: no such file; it holds the scale of the latents and the averaged weights")
    state = unpickle(path)
    for name in ("scaling_factor", "bias_factor"):
        if not isinstance(state.get(name), float):
            raise UserError(f"{path}: {name} is {state.get(name)!r}, expected a number")
    if not state["scaling_factor"] > 0:
        raise UserError(f"{path}: scaling_factor is {state['scaling_factor']}, expected a number above 0")
    return dict(state)


def _tokenizer(folder: Path, run: Run, std: float, mean: float) -> PictureTokenizer:
    """The tokenizer with the normalisation of the model's training: KL-16, or a σ-VAE if its file has a config."""
    path = folder / run.vae
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer file (config.json: vae {run.vae!r})")
    loaded = unpickle(path)
    files = LoadedTensors.of(path, loaded.get("model", loaded))
    if "config" in loaded:
        config = unilm_vae.read_config(loaded["config"], 1 / std)
        if config.image_size != run.image_size:
            raise UserError(f"{path}: its pictures have {config.image_size} pixels, config.json says {run.image_size}")
        tokenizer: PictureTokenizer = unilm_vae.load_sigma_vae(files, config)
    else:
        tokenizer = diffusers_vae.from_files(files, run.image_size)
    tokenizer.latent_mean.fill_(mean)
    tokenizer.latent_std.fill_(std)
    return tokenizer


def _raw(folder: Path) -> CheckpointFiles:
    if not (folder / "model.safetensors").is_file() and (folder / DEEPSPEED).is_file():
        return CheckpointFiles.open(folder / DEEPSPEED)
    return CheckpointFiles.open(folder)


def _average(folder: Path, config: ModelConfig, state: dict) -> CheckpointFiles | None:
    """The averaged tensors, a list in the file, under the names of their parameters; None where there are none."""
    if state.get("ema") is None:
        return None
    values = state["ema"]["shadow_params"]
    names = [name for rule in rules(config) for name in rule.sources if name != NO_HEAD]
    if len(values) != len(names):
        raise UserError(f"{folder / 'other_state.pth'}: {len(values)} averaged tensors, this model has {len(names)}")
    return LoadedTensors.of(folder / "other_state.pth", dict(zip(names, values, strict=True)))


def _ffn(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}.up.weight", (f"{theirs}.fc1.weight", f"{theirs}.gate.weight"), "cat"),
        Rule(f"{ours}.down.weight", (f"{theirs}.fc2.weight",)),
    ]
