"""The model: backbone, heads, diffusion process, sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from ..errors import UserError
from .base import Config, Count


class RopeScalingConfig(Config):
    """Llama 3's: slow rotations are slowed by `factor` for a context longer than the `context_length` of pre-training.

    A frequency that turns `high_frequency` times or more within `context_length` stays, one that turns at most
    `low_frequency` times is divided by `factor`, and between them the two are mixed linearly in the number of turns.
    """

    factor: float = Field(gt=0)
    low_frequency: float = Field(1.0, gt=0)
    high_frequency: float = 4.0
    context_length: Count = 8192

    @model_validator(mode="after")
    def _ordered(self):
        if self.low_frequency >= self.high_frequency:
            raise UserError(f"low_frequency {self.low_frequency} is not below high_frequency {self.high_frequency}")
        return self


class TransformerConfig(Config):
    """Causal pre-RMSNorm SwiGLU RoPE Transformer with the options that Llama 3, Qwen2 and Qwen3 need (PAPER §1.1)."""

    width: Count = 192
    num_layers: Count = 6
    num_heads: Count = 4
    num_kv_heads: Count | None = Field(None, description="grouped-query attention; default num_heads")
    head_dim: Count | None = Field(None, description="default width / num_heads")
    ffn_width: Count | None = Field(None, description="default 8/3 of the width, rounded up to a multiple of 64")
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = Field(1e-6, gt=0)
    norm_weight: bool = Field(True, description="learned RMSNorm weights; the authors' code has none")
    rope_base: float = Field(10000.0, gt=0)
    rope_scaling: RopeScalingConfig | None = None
    rope_interleaved: bool = Field(False, description="pairs (0,1),(2,3) as the authors; else halves as Llama")
    rope_closed: bool = Field(False, description="exponents linspace(0, 1, E/2), 1 included, as the authors; else 2j/E")
    context_length: Count = 1024
    tied_embeddings: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self):
        if self.head_dim is None and self.width % self.num_heads:
            raise UserError(f"width {self.width} is not a multiple of num_heads {self.num_heads}: give head_dim")
        if self.num_heads % self.effective_num_kv_heads:
            raise UserError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.effective_head_dim % 2:
            raise UserError(f"head_dim {self.effective_head_dim} is odd: positions rotate pairs")
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
    """MLP with AdaLN-Zero on timestep and hidden state (PAPER §1.3).

    A head must be several times as wide as its latents have channels: the noisy latent has to pass through it.
    """

    kind: Literal["diffusion"] = "diffusion"
    num_layers: Count = 3
    width: Count | None = Field(None, description="default the backbone's width")
    ffn_width: Count | None = Field(None, description="default 8/3 of its width")
    latent_bias: bool = Field(False, description="a bias in the map of the noisy latent, as the authors' code")
    norm_weight: bool = Field(False, description="VibeVoice learns the RMSNorm weights of its head")
    condition_norm: bool = Field(True, description="RMSNorm on the hidden state first; others rely on the backbone's")
    norm_eps: float = Field(1e-6, gt=0)

    @model_serializer(mode="wrap")
    def _without_kind(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The default kind is not written: files from before there were others stay equal, and resume."""
        return {name: value for name, value in dump(self).items() if name != "kind"}


class MixtureHeadConfig(Config):
    """A mixture of Gaussians over the next latent, from an MLP on the hidden state (GIVT, arXiv 2312.02116)."""

    kind: Literal["mixture"] = "mixture"
    components: Count = Field(16, description="Gaussians, each with a diagonal covariance")
    num_layers: Count = 3
    width: Count | None = Field(None, description="default the backbone's width")
    ffn_width: Count | None = Field(None, description="default 8/3 of its width")
    norm_eps: float = Field(1e-6, gt=0)
    min_scale: float = Field(
        0.01, gt=0, description="floor of the standard deviations; latents have about unit variance"
    )
    temperature: float = Field(1.0, gt=0, description="sampling multiplies the standard deviations by it")
    num_candidates: Count = Field(128, description="draws of which guidance keeps one")


def _head_kind(value: Any) -> str:
    """`kind` of a head's section or config; a section without one is a diffusion head."""
    return str(value.get("kind", "diffusion") if isinstance(value, dict) else getattr(value, "kind", "diffusion"))


HeadConfig = Annotated[
    Annotated[DiffusionHeadConfig, Tag("diffusion")] | Annotated[MixtureHeadConfig, Tag("mixture")],
    Discriminator(_head_kind),
]


class DiffusionConfig(Config):
    """What is predicted and how noise is laid out (PAPER §1.2)."""

    process: Literal["ddpm", "flow"] = "ddpm"
    schedule: Literal["cosine", "linear"] = "cosine"
    prediction: Literal["v", "epsilon", "x0"] = Field("v", description="flow always predicts the velocity")
    num_timesteps: Count = 1000
    timesteps_per_latent: int = Field(4, ge=1, description="noise levels drawn per latent per step")
    target: Literal["sample", "mean"] = Field("sample", description="diffuse the sampled z or the posterior mean")


Solver = Literal["dpm++2m", "dpm++2m-logsnr", "ddim", "euler", "heun"]


class SamplingConfig(Config):
    """What a model is sampled with unless the caller says otherwise."""

    solver: Solver = Field("dpm++2m", description="of the diffusion head")
    steps: int = Field(20, ge=1, description="of the solver, a latent")
    guidance: float = Field(2.0, ge=0, description="classifier-free guidance of pictures and speech; 1 is off")


class ModelConfig(Config):
    prompt: Literal["document", "script"] = Field(
        "document", description="of speech: how it was laid out in training, as a document or a script (PAPER §6)"
    )
    lowercase: bool = Field(
        False,
        description="given texts of documents with media (of a picture or speech to make, or a question about one) are "
        "lower-cased, in training and in prompts; plain text is not",
    )
    transformer: TransformerConfig = TransformerConfig()
    head: HeadConfig = DiffusionHeadConfig()
    heads: dict[str, HeadConfig] = Field({}, description="by modality, where it differs from `head`")
    diffusion: DiffusionConfig = DiffusionConfig()
    latent_projection: Literal["linear", "connector"] = Field(
        "linear", description="how latents enter: a linear map, or VibeVoice's Linear, RMSNorm, Linear"
    )
    stop_at: Literal["eod", "eos"] = Field(
        "eod",
        description="an answer in speech is one span, inside which the text head chooses between going on and <EOD>; "
        "or, as VibeVoice, it lasts until <EOS>: at every position one of <BOD>, <EOD>, going on and <EOS>",
    )
    sampling: SamplingConfig = SamplingConfig()
    special_offset: float = Field(
        0.0,
        description="added to the text logits of <BOD>, <EOD>, <PROCEED>, <LATENT>: unlikely at first on a backbone",
    )
