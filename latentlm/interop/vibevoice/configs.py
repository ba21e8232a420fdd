"""VibeVoice's config.json, of either layout, as configurations of our modules.

Place in the flow: interop, fields ──▶ model, two speech tokenizers, special tokens. A field that is not supported, in
any section, is a UserError with its name and value. Fields without effect on the computation (initialisation, dtypes)
are not read.

VibeVoice in terms of our options (PAPER §6): connectors; a head with learned norm weights and no norm on its condition;
answers that last until <EOS>; <BOD>, <EOD> and <PROCEED> are unused vision tokens of Qwen; no <BOS>.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from ...config import (
    DiffusionConfig,
    DiffusionHeadConfig,
    ModelConfig,
    PosteriorConfig,
    SamplingConfig,
    SpeechTokenizerConfig,
    describe,
)
from ...config.base import did_you_mean
from ...errors import UserError
from ...tokenizers.causal import NORM_EPS
from ..hf_llm import read_config as read_backbone
from .names import ORIGINAL, TRANSFORMERS, Layout

SIGMA_DIVISOR = 0.8
"""E|n| is 0.798 for n ~ N(0, 1): so with σ ~ N(0, (std / 0.8)²) the mean of |σ| is about `fix_std` of the config."""

QWEN = {"eos": 151643, "bod:speech": 151652, "eod": 151653, "proceed": 151654, "latent": 151654}
"""Ids of <|endoftext|>, <|vision_start|>, <|vision_end|> and <|vision_pad|> in Qwen's tokenizer. The original layout's
code looks them up there; its config does not have them."""

ABSENT = {"bos": None, "bod:image": None}


@dataclass(frozen=True)
class VibeVoice:
    """The configuration of a checkpoint.

    noise      std of σ in raw latents; `with_processor` makes it relative to the std of the latents, which the weights
               contain
    semantic   None for VibeVoice-Realtime
    num_upper  the upper layers of VibeVoice-Realtime, which produce speech; None for the others
    """

    layout: Layout
    model: ModelConfig
    speech: SpeechTokenizerConfig
    semantic: SpeechTokenizerConfig | None
    noise: float
    vocab_size: int
    special: dict[str, int | None]
    num_upper: int | None = None


def read_config(fields: Mapping) -> VibeVoice:
    """The configuration in the fields of config.json. Raises UserError naming a field that is not supported."""
    if "acoustic_tokenizer_config" in fields and "decoder_config" in fields:
        read = _original
    elif fields.get("model_type") == "vibevoice":
        read = _transformers
    else:
        raise UserError(f"model_type {fields.get('model_type')!r} is not supported (known: vibevoice, its original)")
    return read(fields)


def _transformers(fields: Mapping) -> VibeVoice:
    acoustic, semantic = (_part(fields, name) for name in ("audio_config", "semantic_model_config"))
    backbone, head = _part(fields, "text_config"), _part(fields, "diffusion_head_config")
    for part, name in ((acoustic, "audio_config"), (semantic, "semantic_model_config")):
        _refuse_unknown(part, name, TOKENIZER_FIELDS)
    _refuse_unknown(head, "diffusion_head_config", HEAD_FIELDS)
    width = _count(backbone, "text_config", "hidden_size")
    latent_dim = _count(acoustic, "audio_config", "hidden_size")
    _only(head, "diffusion_head_config", hidden_act="silu", frequency_embedding_size=256, diffusion_max_period=10000)
    _only(head, "diffusion_head_config", mlp_bias=False, hidden_size=width, latent_size=latent_dim)
    tokens = {"eos": "eos_token_id", "bod:speech": "audio_bos_token_id", "eod": "audio_eos_token_id"}
    tokens |= {"proceed": "audio_token_id", "latent": "audio_token_id"}
    return VibeVoice(
        TRANSFORMERS,
        _model(
            fields,
            "text_config",
            DiffusionHeadConfig(
                num_layers=head.get("num_hidden_layers", 4),
                ffn_width=head.get("intermediate_size", 4608),
                norm_eps=head.get("rms_norm_eps", 1e-5),
                **HEAD,
            ),
            DiffusionConfig(),
            SamplingConfig(steps=10, guidance=1.3),
        ),
        _tokenizer(acoustic, "audio_config", "both"),
        _tokenizer(semantic, "semantic_model_config", "encoder"),
        acoustic.get("vae_std", 0.625),
        _count(backbone, "text_config", "vocab_size"),
        {ours: fields.get(theirs, QWEN[ours]) for ours, theirs in tokens.items()} | ABSENT,
    )


def _original(fields: Mapping) -> VibeVoice:
    num_upper = fields.get("tts_backbone_num_hidden_layers")
    acoustic, semantic = _part(fields, "acoustic_tokenizer_config"), None
    if num_upper is None:
        semantic = _part(fields, "semantic_tokenizer_config")
        _only(semantic, "semantic_tokenizer_config", std_dist_type="none")
        semantic = _original_tokenizer(semantic, "semantic_tokenizer_config", "encoder")
    backbone, head = _part(fields, "decoder_config"), _part(fields, "diffusion_head_config")
    width = _count(backbone, "decoder_config", "hidden_size")
    latent_dim = _count(acoustic, "acoustic_tokenizer_config", "vae_dim")
    name = "diffusion_head_config"
    _only(head, name, diffusion_type="ddpm", hidden_size=width, latent_size=latent_dim)
    _only(head, name, ddpm_algorithm_type="dpmsolver++")
    _refuse_unknown(head, name, ORIGINAL_HEAD_FIELDS)
    _among(head, name, "ddpm_beta_schedule", ("cosine", "squaredcos_cap_v2"))
    predictions = {"v_prediction": "v", "epsilon": "epsilon"}
    _among(head, name, "prediction_type", tuple(predictions))
    _only(acoustic, "acoustic_tokenizer_config", std_dist_type="gaussian")
    ffn_ratio = head.get("head_ffn_ratio", 3.0)
    return VibeVoice(
        ORIGINAL,
        _model(
            fields,
            "decoder_config",
            DiffusionHeadConfig(
                num_layers=head.get("head_layers", 4),
                ffn_width=int(width * ffn_ratio),
                norm_eps=head.get("rms_norm_eps", 1e-5),
                **HEAD,
            ),
            DiffusionConfig(
                prediction=predictions[head.get("prediction_type", "v_prediction")],
                num_timesteps=head.get("ddpm_num_steps", 1000),
                timesteps_per_latent=head.get("ddpm_batch_mul", 4),
            ),
            SamplingConfig(steps=head.get("ddpm_num_inference_steps", 20), guidance=1.3),
        ),
        _original_tokenizer(acoustic, "acoustic_tokenizer_config", "both" if num_upper is None else "decoder"),
        semantic,
        acoustic.get("fix_std", 0.5) / SIGMA_DIVISOR,
        _count(backbone, "decoder_config", "vocab_size"),
        QWEN | ABSENT,
        num_upper,
    )


HEAD = {"norm_weight": True, "condition_norm": False}

TOKENIZER_FIELDS = (
    *("channels", "hidden_size", "kernel_size", "rms_norm_eps", "num_filters", "downsampling_ratios", "depths"),
    *("hidden_act", "ffn_expansion", "vae_std"),
)
HEAD_FIELDS = (
    *("hidden_size", "latent_size", "num_hidden_layers", "intermediate_size", "rms_norm_eps", "hidden_act"),
    *("frequency_embedding_size", "diffusion_max_period", "mlp_bias"),
)
ORIGINAL_TOKENIZER_FIELDS = (
    *("causal", "channels", "conv_bias", "conv_norm", "corpus_normalize", "decoder_depths", "decoder_n_filters"),
    *("decoder_ratios", "disable_last_norm", "encoder_depths", "encoder_n_filters", "encoder_ratios", "fix_std"),
    *("layernorm", "layernorm_elementwise_affine", "layernorm_eps", "mixer_layer", "pad_mode", "std_dist_type"),
    "vae_dim",
)
ORIGINAL_HEAD_FIELDS = (
    *("ddpm_algorithm_type", "ddpm_batch_mul", "ddpm_beta_schedule", "ddpm_num_inference_steps", "ddpm_num_steps"),
    *("diffusion_type", "head_ffn_ratio", "head_layers", "hidden_size", "latent_size", "prediction_type"),
    *("rms_norm_eps", "speech_vae_dim"),
)
"""The fields of each section that are read or checked here."""

NO_EFFECT = (
    *("initializer_range", "layer_scale_init_value", "weight_init_value", "model_type", "architectures", "auto_map"),
    *("dtype", "torch_dtype", "transformers_version", "name_or_path", "torchscript", "use_cache", "return_dict"),
    *("output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder", "problem_type"),
    *("id2label", "label2id"),
)
"""Fields of initialisation and bookkeeping, which `transformers` may write into every section. Those that begin with _
are of this kind too."""


def _model(
    fields: Mapping, name: str, head: DiffusionHeadConfig, diffusion: DiffusionConfig, sampling: SamplingConfig
) -> ModelConfig:
    try:
        backbone = read_backbone(_part(fields, name))
    except UserError as error:
        raise UserError(f"{name}.{error}") from None
    return ModelConfig(
        transformer=backbone,
        head=head,
        diffusion=diffusion,
        prompt="script",
        latent_projection="connector",
        stop_at="eos",
        sampling=sampling,
    )


def _tokenizer(fields: Mapping, name: str, parts: str) -> SpeechTokenizerConfig:
    """A tokenizer's config from fields in the layout of `transformers`, with its defaults."""
    _only(fields, name, channels=1, hidden_act="gelu", ffn_expansion=4, rms_norm_eps=NORM_EPS)
    depths = tuple(fields.get("depths", (3, 3, 3, 3, 3, 3, 8)))
    filters = _count(fields, name, "num_filters", 32)
    try:
        return SpeechTokenizerConfig(
            parts=parts,
            strides=tuple(fields.get("downsampling_ratios", (2, 2, 4, 5, 5, 8))),
            channels=filters,
            max_channels=filters * 2 ** (len(depths) - 1),
            depths=depths,
            kernel_size=fields.get("kernel_size", 7),
            latent_dim=_count(fields, name, "hidden_size"),
            posterior=PosteriorConfig(kind="none" if parts == "encoder" else "sigma"),
        )
    except ValidationError as error:
        raise UserError(f"{name}.{describe(error, SpeechTokenizerConfig)}") from None


def _original_tokenizer(fields: Mapping, name: str, parts: str) -> SpeechTokenizerConfig:
    """A tokenizer's config from fields in Microsoft's layout, which are translated to those of `transformers`."""
    same = {"causal": True, "corpus_normalize": 0.0, "mixer_layer": "depthwise_conv", "conv_norm": "none"}
    same |= {"pad_mode": "constant", "disable_last_norm": True, "layernorm": "RMSNorm", "conv_bias": True}
    same |= {"layernorm_elementwise_affine": True}
    _only(fields, name, **same)
    _refuse_unknown(fields, name, ORIGINAL_TOKENIZER_FIELDS)
    depths = _depths(fields, name, "encoder_depths") or [3, 3, 3, 3, 3, 3, 8]
    ratios = list(fields.get("encoder_ratios") or (8, 5, 5, 4, 2, 2))
    filters = _count(fields, name, "encoder_n_filters", 32)
    mirror = {"decoder_ratios": (None, ratios), "decoder_n_filters": (None, filters)}
    for key, allowed in mirror.items():
        _among(fields, name, key, allowed)
    if (_depths(fields, name, "decoder_depths") or depths[::-1]) != depths[::-1]:
        raise UserError(f"{name}.decoder_depths {fields['decoder_depths']!r} is not encoder_depths reversed")
    later = {"channels": fields.get("channels", 1), "rms_norm_eps": fields.get("layernorm_eps", NORM_EPS)}
    later |= {"depths": depths, "downsampling_ratios": ratios[::-1], "num_filters": filters}
    return _tokenizer(later | {"hidden_size": _count(fields, name, "vae_dim")}, name, parts)


def _depths(fields: Mapping, part: str, name: str) -> list[int] | None:
    """The list in the field `name`, written "3-3-8" or [3, 3, 8]; None where the field is absent or null."""
    value = fields.get(name)
    try:
        return (
            None if value is None else [int(depth) for depth in (value.split("-") if isinstance(value, str) else value)]
        )
    except (ValueError, TypeError):
        raise UserError(f"{part}.{name} {value!r} is not a list of whole numbers") from None


def _refuse_unknown(fields: Mapping, name: str, known: tuple[str, ...]) -> None:
    """Raise UserError for a field of section `name` that might change the computation and is not read here."""
    for key, value in fields.items():
        if key not in known and key not in NO_EFFECT and not key.startswith("_"):
            raise UserError(f"{name}.{key} {value!r} is not supported{did_you_mean(key, known)}")


def _part(fields: Mapping, name: str) -> Mapping:
    part = fields.get(name)
    if not isinstance(part, Mapping):
        raise UserError(f"{name} is missing")
    return part


def _count(fields: Mapping, part: str, name: str, default: int | None = None) -> int:
    """The whole number above 0 in the field `name`; without a default the field must be there."""
    value = fields.get(name, default)
    if value is None:
        raise UserError(f"{part}.{name} is missing")
    if type(value) is not int or value < 1:
        raise UserError(f"{part}.{name} {value!r} is not a whole number above 0")
    return value


def _only(fields: Mapping, name: str, **allowed) -> None:
    for key, value in allowed.items():
        _among(fields, name, key, (value,))


def _among(fields: Mapping, name: str, key: str, allowed: tuple) -> None:
    if key in fields and fields[key] not in allowed:
        known = ", ".join(repr(value) for value in allowed)
        raise UserError(f"{name}.{key} {fields[key]!r} is not supported, only {known} is")
