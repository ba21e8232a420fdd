"""Language models of `transformers` (Llama 3, Qwen2 and 2.5, Qwen3, Mistral) as backbones, and back.

Place in the flow: interop, a folder of `transformers` ──▶ a LatentLM without latents, or the backbone of a larger one.
SmolLM2 and other models of model_type `llama` are read as Llama. `transformers` itself is not needed.
A config field that the model's class in `transformers` reads is mapped, has no effect on inference, or is refused by
name; fields that the class ignores are ignored here too.

A backbone has no <EOD>, <PROCEED>, <LATENT> and <BOD> tokens. They get new rows behind its V rows, each the mean of
those rows, and an offset of -10 on their text logits. The logit of a mean row is the mean of the V logits, at most
logsumexp - log V. So five such tokens together take less than 5·e^-10/V of the probability for any hidden state: the
text loss changes by less than 1e-8 nats at V = 49,152. <BOS> and <EOS> are the backbone's own.
Legend: `V` rows of the backbone's embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError

from ..config import SPECIAL_OFFSET, ModelConfig, RopeScalingConfig, TransformerConfig, describe
from ..errors import UserError
from ..generation.pipeline import Pipeline
from ..model.latentlm import LatentLM
from ..model.layers import ffn_width
from ..tokenizers.text import TextTokenizer
from ..weights import write_text
from .checkpoint_files import CheckpointFiles, locate
from .mapping import SHARD_SIZE, Rule, export, fill
from .quantised import refuse_quantised_tensors

HEAD = "lm_head.weight"
IGNORE = ("*.rotary_emb.inv_freq",)
"""Tensors that old releases of transformers saved and that are computed here."""


@dataclass(frozen=True)
class Family:
    """A model_type of `transformers`: its class, the options of its layers, and its defaults of config fields."""

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    defaults: Mapping = field(default_factory=dict)


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", defaults={"sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, defaults={"head_dim": 128}),
}

ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
"""Fields that may have only this value, or be absent. Qwen2 always has biases on q, k and v, without a field."""

DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}

WRITTEN = {
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "ffn_width",
    "qkv_bias",
    "qk_norm",
    "norm_eps",
}
WRITTEN |= {"rope_base", "rope_scaling", "context_length", "tied_embeddings", "dropout"}
"""Our options that can be written to a config.json; all others must have their default value."""


@dataclass(frozen=True)
class Backbone:
    """A language model in its files.

    files        its weights and config
    transformer  the configuration of our Transformer that holds it
    text         its own text tokenizer with our special tokens
    """

    files: CheckpointFiles
    transformer: TransformerConfig
    text: TextTokenizer

    @classmethod
    def open(cls, name: str | Path) -> Backbone:
        """Open a folder of `transformers` with tokenizer.json, or a hub id. Raises UserError saying what is wrong."""
        files = CheckpointFiles.open(locate(name))
        try:
            transformer = read_config(files.config)
            vocab_size, special = _count(files.config, "vocab_size"), special_tokens(files.config)
        except UserError as error:
            raise UserError(f"{files.path}: config.json: {error}") from None
        text = TextTokenizer.from_backbone(files.folder / "tokenizer.json", vocab_size, special)
        return cls(files, transformer, text)

    def fill(self, model: LatentLM) -> None:
        """Copy the weights into `model` and set the rows of our special tokens; latent maps and heads are unchanged.

        Raises UserError, one line, for weights that are missing, extra, misshaped or quantised.
        """
        rows = self.text.base_size
        ignore = IGNORE
        if self.transformer.tied_embeddings:
            check_tied(self.files)
            ignore = (*IGNORE, HEAD)
        fill(model, self.files, rules(self.transformer, rows), ignore=ignore, keep=_own(model))
        with torch.no_grad():
            for weight in {model.embed_tokens.weight, model.text_head.weight}:
                weight[rows:] = weight[:rows].mean(0)


def load(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Pipeline:
    """A language model as a LatentLM of text alone. Raises UserError saying what does not fit."""
    backbone = Backbone.open(path)
    config = ModelConfig(transformer=backbone.transformer, special_offset=SPECIAL_OFFSET)
    with torch.device("meta"):
        model = LatentLM(config, backbone.text.vocab_size, backbone.text.special, {}).to(dtype)
    backbone.fill(model)
    return Pipeline(model, {"text": backbone.text})


def save(pipeline: Pipeline, folder: str | Path, *, shard_size: int = SHARD_SIZE) -> None:
    """Write the text part of `pipeline` as a folder of `transformers`: config.json, weights, tokenizer.json.

    Latent maps, heads and the special tokens of latent spans are left out. Raises UserError for a configuration that no
    class of `transformers` has.
    """
    model, text = pipeline.model, pipeline.tokenizers["text"]
    rows = text.text_size
    folder = Path(folder)
    special = {f"{name}_token_id": getattr(text.special, name) for name in ("bos", "eos")}
    fields = write_fields(model.config.transformer, rows) | special
    fields["dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    export(model, rules(model.config.transformer, rows), folder, keep=_own(model), shard_size=shard_size)
    write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
    write_text(folder / "tokenizer.json", text.to_json() + "\n")
    write_text(folder / "tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


def read_config(fields: Mapping) -> TransformerConfig:
    """The configuration of our Transformer from the fields of a config.json of `transformers` 4.x or 5.x.

    Raises UserError, one line, naming the first field that is missing or not supported, and its value.
    """
    family = FAMILIES.get(fields.get("model_type"))
    if family is None:
        raise UserError(f"model_type {fields.get('model_type')!r} is not supported (known: {', '.join(FAMILIES)})")
    fields = {**DEFAULTS, **family.defaults, **fields}
    for name, only in ONLY.items():
        if fields.get(name, only) != only:
            raise UserError(f"{name} {fields[name]!r} is not supported, only {only!r} is")
    if fields["model_type"] == "mistral" and fields["sliding_window"] is not None:
        raise UserError(f"sliding_window {fields['sliding_window']} is not supported, only None is")
    if set(fields.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(f"layer_types {fields['layer_types']} are not supported, only 'full_attention' is")
    width, num_heads = _count(fields, "hidden_size"), _count(fields, "num_attention_heads")
    try:
        base, scaling = _rope(fields)
        return TransformerConfig(
            width=width,
            num_layers=_count(fields, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields["num_key_value_heads"] or num_heads,
            head_dim=fields["head_dim"] or width // num_heads,
            ffn_width=_count(fields, "intermediate_size"),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            norm_eps=fields["rms_norm_eps"],
            rope_base=base,
            rope_scaling=scaling,
            context_length=_count(fields, "max_position_embeddings"),
            tied_embeddings=fields["tie_word_embeddings"],
            dropout=fields["attention_dropout"],
        )
    except ValidationError as error:
        raise UserError(describe(error, TransformerConfig)) from None


def write_fields(config: TransformerConfig, vocab_size: int) -> dict:
    """The fields of config.json for the class of `transformers` that has these layers.

    Raises UserError naming an option that no class has.
    """
    for name, option in TransformerConfig.model_fields.items():
        if name not in WRITTEN and getattr(config, name) != option.default:
            raise UserError(f"transformer.{name} {getattr(config, name)} has no counterpart in transformers")
    layers = (config.qkv_bias, config.qk_norm)
    kinds = [name for name, f in FAMILIES.items() if (f.qkv_bias, f.qk_norm) == layers]
    if not kinds:
        raise UserError("transformer.qkv_bias and transformer.qk_norm together have no counterpart in transformers")
    rope = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": config.rope_base,
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency,
            "high_freq_factor": config.rope_scaling.high_frequency,
            "original_max_position_embeddings": config.rope_scaling.context_length,
        }
    return {
        "model_type": kinds[0],
        "architectures": [FAMILIES[kinds[0]].architecture],
        "vocab_size": vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width or ffn_width(config.width),
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.effective_num_kv_heads,
        "head_dim": config.effective_head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": config.dropout,
    }


def rules(config: TransformerConfig, rows: int | None = None, prefix: str = "model.") -> list[Rule]:
    """The rules for a backbone's weights. rows: of the embedding that are the backbone's; default: all."""
    head_dim, num_kv_heads = config.effective_head_dim, config.effective_num_kv_heads
    heads = (config.num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim)
    found = [Rule("embed_tokens.weight", (f"{prefix}embed_tokens.weight",), rows=rows)]
    for number in range(config.num_layers):
        ours, theirs = f"transformer.blocks.{number}", f"{prefix}layers.{number}"
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            qkv = tuple(f"{theirs}.self_attn.{x}_proj.{kind}" for x in "qkv")
            found.append(Rule(f"{ours}.attention.qkv.{kind}", qkv, "cat", heads))
        up = (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")
        found.append(Rule(f"{ours}.ffn.up.weight", up, "cat"))
        same = {"attention.out": "self_attn.o_proj", "ffn.down": "mlp.down_proj"}
        same |= {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        if config.qk_norm:
            same |= {f"attention.{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
        found += [Rule(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",)) for a, b in same.items()]
    found.append(Rule("transformer.norm.weight", (f"{prefix}norm.weight",)))
    if not config.tied_embeddings:
        found.append(Rule("text_head.weight", (HEAD,), rows=rows))
    return found


def _own(model: LatentLM) -> list[str]:
    """Patterns for the parts that a language model does not have: maps of latents, heads."""
    shared = ("embed_tokens", "transformer", "text_head")
    return [f"{name}.*" for name, _ in model.named_children() if name not in shared]


def special_tokens(fields: Mapping) -> dict[str, int]:
    """The ids of <BOS> and <EOS>: the first eos_token_id, and bos_token_id or, where there is none, the same id.

    (Qwen has no <BOS>; it separates documents by <|endoftext|>.)
    """
    eos, bos = (_first(fields.get(f"{name}_token_id")) for name in ("eos", "bos"))
    known = {"bos": eos if bos is None else bos, "eos": eos}
    return {name: i for name, i in known.items() if i is not None}


def check_tied(files: CheckpointFiles, embedding: str = "model.embed_tokens.weight") -> None:
    """Raise UserError where a checkpoint with tied embeddings holds a head that differs from the embedding."""
    refuse_quantised_tensors(files, (HEAD, embedding))
    if {HEAD, embedding} <= files.names and not torch.equal(files.read(HEAD), files.read(embedding)):
        raise UserError(f"{files.path}: tie_word_embeddings is true, but {HEAD} differs from {embedding}")


def _first(value: int | list[int] | None) -> int | None:
    return next(iter(value), None) if isinstance(value, list) else value


def _need(fields: Mapping, name: str):
    if name not in fields:
        raise UserError(f"{name} is missing")
    return fields[name]


def _count(fields: Mapping, name: str) -> int:
    value = _need(fields, name)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} {value!r} is not a positive number")
    return value


def _rope(fields: Mapping) -> tuple[float, RopeScalingConfig | None]:
    """Base and scaling of RoPE, from `rope_parameters` (5.x) or `rope_theta` and `rope_scaling` (4.x)."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    base = rope.get("rope_theta", fields.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"partial_rotary_factor {rope['partial_rotary_factor']} is not supported, only 1.0 is")
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise UserError(f"rope_type {kind!r} is not supported (known: default, llama3)")
    scaling = RopeScalingConfig(
        factor=_need(rope, "factor"),
        low_frequency=_need(rope, "low_freq_factor"),
        high_frequency=_need(rope, "high_freq_factor"),
        context_length=_need(rope, "original_max_position_embeddings"),
    )
    return base, scaling
