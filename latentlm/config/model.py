"""Configuration of the model: Transformer, heads, diffusion process, sampling defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from ..errors import UserError
from .base import Config, Count


class RopeScalingConfig(Config):
    """Llama 3's RoPE scaling: divides low frequencies by `factor`, for contexts longer than those of pre-training.

    A frequency that turns `high_frequency` times or more within `context_length` is kept; one that turns at most
    `low_frequency` times is divided by `factor`; between the two, the scale is interpolated linearly in the turns.
    """

    factor: float = Field(gt=0, description="divisor of the low frequencies")
    low_frequency: float = Field(
        1.0, gt=0, description="frequencies of at most this many turns per context are divided by factor"
    )
    high_frequency: float = Field(4.0, description="frequencies of at least this many turns per context are kept")
    context_length: Count = Field(8192, description="context length of pre-training, in positions")

    @model_validator(mode="after")
    def _ordered(self):
        if self.low_frequency >= self.high_frequency:
            raise UserError(f"low_frequency {self.low_frequency} is not below high_frequency {self.high_frequency}")
        return self


class TransformerConfig(Config):
    """Causal pre-RMSNorm SwiGLU RoPE Transformer with the options that Llama 3, Qwen2 and Qwen3 need (PAPER §1.1)."""

    width: Count = Field(192, description="width of the hidden states")
    num_layers: Count = Field(6, description="number of Transformer blocks")
    num_heads: Count = Field(4, description="attention heads per layer")
    num_kv_heads: Count | None = Field(
        None, description="key-value heads per layer, for grouped-query attention; default num_heads"
    )
    head_dim: Count | None = Field(None, description="width of an attention head; default width / num_heads")
    ffn_width: Count | None = Field(
        None,
        description="hidden width of the feed-forward network; default 8/3 of width, rounded up to a multiple of 64",
    )
    qkv_bias: bool = Field(False, description="whether the query, key and value projections have a bias")
    qk_norm: bool = Field(False, description="whether queries and keys are normalised by RMSNorm")
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of every RMSNorm")
    norm_weight: bool = Field(
        True, description="whether RMSNorm has a learned weight; the code of the paper's authors has none"
    )
    rope_base: float = Field(10000.0, gt=0, description="base of the rotary position embedding")
    rope_scaling: RopeScalingConfig | None = Field(
        None, description="RoPE scaling of Llama 3, for longer contexts; null: none"
    )
    rope_interleaved: bool = Field(
        False,
        description="RoPE rotates the channel pairs (0, 1), (2, 3), … as in the authors' code; false: pairs of a "
        "channel of the first half and one of the second, as Llama",
    )
    rope_closed: bool = Field(
        False,
        description="RoPE exponents linspace(0, 1, head_dim / 2), as the code of the paper's authors; "
        "false: 2j / head_dim",
    )
    context_length: Count = Field(1024, description="the most positions of one document")
    tied_embeddings: bool = Field(False, description="whether the text head shares its weights with the embedding")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability")

    @model_validator(mode="after")
    def _divides(self):
        if self.head_dim is None and self.width % self.num_heads:
            raise UserError(f"width {self.width} is not a multiple of num_heads {self.num_heads}: give head_dim")
        if self.num_heads % self.effective_num_kv_heads:
            raise UserError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.effective_head_dim % 2:
            raise UserError(
                f"head_dim {self.effective_head_dim} is odd, but RoPE rotates pairs of channels: it must be even"
            )
        return self

    @property
    def effective_head_dim(self) -> int:
        """`head_dim`, or its default."""
        return self.head_dim or self.width // self.num_heads

    @property
    def effective_num_kv_heads(self) -> int:
        """`num_kv_heads`, or its default."""
        return self.num_kv_heads or self.num_heads


class DiffusionHeadConfig(Config):
    """Diffusion head: an MLP conditioned on timestep and hidden state by AdaLN-Zero (PAPER §1.3).

    Its width must be several times the number of latent channels, because the noisy latent passes through it.
    """

    kind: Literal["diffusion"] = Field("diffusion", description="diffusion: next-token diffusion, the paper's head")
    num_layers: Count = Field(3, description="number of MLP blocks")
    width: Count | None = Field(None, description="width of the head; default the Transformer's width")
    ffn_width: Count | None = Field(None, description="hidden width of each block; default 8/3 of the head's width")
    latent_bias: bool = Field(
        False,
        description="whether the projection of the noisy latent has a bias, as in the code of the paper's authors",
    )
    norm_weight: bool = Field(False, description="whether the RMSNorms of the head have a learned weight")
    condition_norm: bool = Field(
        True, description="whether the head normalises the hidden state; false: the Transformer's last norm suffices"
    )
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of every RMSNorm of the head")

    @model_serializer(mode="wrap")
    def _without_kind(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `kind`, so that files stay equal to those written before there were other kinds, and resume."""
        return {name: value for name, value in dump(self).items() if name != "kind"}


class MixtureHeadConfig(Config):
    """Mixture head: a Gaussian mixture over the next latent, by an MLP on the hidden state (GIVT, arXiv 2312.02116)."""

    kind: Literal["mixture"] = Field("mixture", description="mixture: a Gaussian mixture over the next latent (GIVT)")
    components: Count = Field(16, description="number of Gaussians, each with a diagonal covariance")
    num_layers: Count = Field(3, description="number of MLP blocks")
    width: Count | None = Field(None, description="width of the head; default the Transformer's width")
    ffn_width: Count | None = Field(None, description="hidden width of each block; default 8/3 of the head's width")
    norm_eps: float = Field(1e-6, gt=0, description="epsilon of every RMSNorm of the head")
    min_scale: float = Field(
        0.01, gt=0, description="smallest standard deviation of a Gaussian; latents have about unit variance"
    )
    temperature: float = Field(1.0, gt=0, description="factor of the standard deviations in sampling")
    num_candidates: Count = Field(128, description="samples drawn per latent, of which guidance selects one")


def _head_kind(value: Any) -> str:
    """Return `kind` of a head's section or config; a section without `kind` is a diffusion head."""
    return str(value.get("kind", "diffusion") if isinstance(value, dict) else getattr(value, "kind", "diffusion"))


HeadConfig = Annotated[
    Annotated[DiffusionHeadConfig, Tag("diffusion")] | Annotated[MixtureHeadConfig, Tag("mixture")],
    Discriminator(_head_kind),
]


class DiffusionConfig(Config):
    """The diffusion process: noise schedule and prediction target (PAPER §1.2)."""

    process: Literal["ddpm", "flow"] = Field(
        "ddpm", description="ddpm: a variance-preserving process; flow: linear interpolation of latent and noise"
    )
    schedule: Literal["cosine", "linear"] = Field("cosine", description="noise schedule of ddpm")
    prediction: Literal["v", "epsilon", "x0"] = Field(
        "v",
        description="what the head predicts with ddpm: v, the noise, or the clean latent; flow predicts the velocity",
    )
    num_timesteps: Count = Field(1000, description="number of timesteps of the training process")
    timesteps_per_latent: int = Field(4, ge=1, description="noise levels drawn per latent in a training step")
    target: Literal["sample", "mean"] = Field(
        "sample", description="the clean latent to diffuse: a sample of the tokenizer's posterior, or its mean"
    )


Solver = Literal["dpm++2m", "dpm++2m-logsnr", "ddim", "euler", "heun"]


class SamplingConfig(Config):
    """Sampling defaults of a model; each can be overridden when generating."""

    solver: Solver = Field("dpm++2m", description="solver of the diffusion head")
    steps: int = Field(20, ge=1, description="solver steps per latent")
    guidance: float = Field(2.0, ge=0, description="scale of classifier-free guidance of pictures and speech; 1: off")


class ModelConfig(Config):
    """The architecture and sampling defaults of a LatentLM."""

    prompt: Literal["document", "script"] = Field(
        "document",
        description="layout of prompts for speech; document: text, then speech; script: lines of speakers (PAPER §6)",
    )
    lowercase: bool = Field(
        False,
        description="lower-case the texts that are a condition in documents with media (caption to draw, words to say, "
        "question), in training and in prompts; plain text stays as it is",
    )
    transformer: TransformerConfig = Field(TransformerConfig(), description="the causal Transformer")
    head: HeadConfig = Field(DiffusionHeadConfig(), description="the head that predicts latents, for every modality")
    heads: dict[str, HeadConfig] = Field({}, description="heads by modality (image, speech, …), instead of head")
    diffusion: DiffusionConfig = Field(DiffusionConfig(), description="the process that diffusion heads reverse")
    latent_projection: Literal["linear", "connector"] = Field(
        "linear", description="map of latents to the Transformer's width; connector: Linear, RMSNorm, Linear (PAPER §6)"
    )
    stop_at: Literal["eod", "eos"] = Field(
        "eod",
        description="end of an answer in speech; eod: one span, which <EOD> ends; eos: spans until <EOS>, where "
        "every position chooses between <BOD>, <EOD>, one more latent and <EOS> (PAPER §6)",
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="sampling defaults, saved with the model")
    special_offset: float = Field(
        0.0,
        description="added to the text logits of <BOD>, <EOD>, <PROCEED> and <LATENT>; negative on a backbone, whose "
        "text must not change",
    )
