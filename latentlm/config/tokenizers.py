"""Configuration of the tokenizers of text, images and speech, and of their posteriors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from ..errors import UserError
from .base import Config, Count, require_multiple

Fit = Literal["crop", "pad", "stretch"]
FIT = "of pictures that are not square: crop to the centre square, pad with white, or stretch to a square"


class PosteriorConfig(Config):
    """The posterior of the latents: z = μ + σ·ε (PAPER §1.7)."""

    kind: Literal["sigma", "learned", "none"] = Field(
        "sigma", description="sigma: one σ ~ N(0, C_σ²) per example (σ-VAE); learned: a plain VAE; none: no noise"
    )
    c_sigma: float = Field(0.5, ge=0, description="C_σ of kind sigma, relative to the standard deviation of μ")
    weight: float = Field(
        1e-3, ge=0, description="β: weight of the prior loss, ‖μ‖² for sigma and none, the KL divergence for learned"
    )


class ImageTokenizerConfig(Config):
    """ViT encoder and decoder (PAPER §2.1). One latent per patch: (image_size / patch_size)² latents per picture."""

    kind: Literal["image"] = Field("image", description="image: a ViT with one latent per patch")
    image_size: Count = Field(32, description="side of the pictures in pixels; others are resized")
    fit: Fit = Field("crop", description=FIT)
    patch_size: Count = Field(
        8, description="side of a patch in pixels; a picture has (image_size / patch_size)² latents"
    )
    latent_dim: Count = Field(32, description="channels per latent")
    width: Count = Field(192, description="width of encoder and decoder")
    encoder_layers: NonNegativeInt = Field(3, description="Transformer blocks of the encoder")
    decoder_layers: NonNegativeInt = Field(3, description="Transformer blocks of the decoder")
    num_heads: Count = Field(4, description="attention heads per block")
    class_token: bool = Field(
        False,
        description="whether a learned token stands beside the patches, as in the networks of the paper's authors",
    )
    encoder_sub_norm: bool = Field(
        False, description="whether the encoder also has norms inside attention and feed-forward, as BEiT-3"
    )
    per_channel: bool = Field(
        False, description="whether each latent channel has its own mean and scale; false: one for all channels"
    )
    posterior: PosteriorConfig = Field(PosteriorConfig(), description="posterior of the latents")

    @model_validator(mode="after")
    def _divides(self):
        require_multiple("image_size", self.image_size, "patch_size", self.patch_size)
        require_multiple("width", self.width, "num_heads", self.num_heads)
        return self


class ConvImageTokenizerConfig(Config):
    """The convolutional autoencoder of latent diffusion: one latent per cell of 2^(stages - 1) pixels squared."""

    kind: Literal["conv_image"] = Field("conv_image", description="conv_image: a convolutional autoencoder")
    image_size: Count = Field(256, description="side of the pictures in pixels; others are resized")
    fit: Fit = Field("crop", description=FIT)
    latent_dim: Count = Field(16, description="channels per latent")
    channels: tuple[Count, ...] = Field(
        (128, 128, 256, 256, 512),
        min_length=1,
        description="channels of each stage; the resolution is halved between two stages",
    )
    num_blocks: Count = Field(2, description="residual blocks per encoder stage; a decoder stage has one more")
    norm_groups: Count = Field(32, description="groups of the group norms")
    deepest_attention: bool = Field(
        False, description="whether every block of the encoder's last stage is followed by attention, as in KL-16"
    )
    latent_conv: bool = Field(
        False, description="whether 1×1 convolutions stand before and after the latents (quant_conv of diffusers)"
    )
    per_channel: bool = Field(
        False, description="whether each latent channel has its own mean and scale; false: one for all channels"
    )
    posterior: PosteriorConfig = Field(
        PosteriorConfig(kind="learned", weight=1e-6), description="posterior of the latents"
    )

    @model_validator(mode="after")
    def _divides(self):
        require_multiple("image_size", self.image_size, "the pixels per latent,", self.patch_size)
        for width in self.channels:
            require_multiple("channels", width, "norm_groups", self.norm_groups)
        return self

    @property
    def patch_size(self) -> int:
        """Side in pixels of the cell of one latent."""
        return 2 ** (len(self.channels) - 1)


class SpeechTokenizerConfig(Config):
    """Causal ConvNeXt stages (PAPER §4.1). One latent per frame_hop · Π strides samples."""

    kind: Literal["speech"] = Field("speech", description="speech: causal ConvNeXt stages")
    parts: Literal["both", "encoder", "decoder"] = Field(
        "both",
        description="encoder: features of speech, which cannot be decoded (PAPER §6); decoder: only turns latents into "
        "speech",
    )
    sample_rate: Count = Field(24000, description="samples per second; clips of other rates are resampled")
    front: Literal["waveform", "spectral"] = Field(
        "waveform",
        description="waveform: strided convolutions on the samples, as the paper; spectral: on the frames of an STFT, "
        "which learns faster on a small budget",
    )
    frame_hop: Count = Field(1, description="hop of the STFT in samples; 1 for waveform")
    frame_window: Count = Field(1, description="window of the STFT in samples; 1 for waveform")
    strides: tuple[Count, ...] = Field(
        (2, 4, 5, 5, 8),
        description="downsampling factor of each stage; a latent covers frame_hop · their product samples",
    )
    channels: Count = Field(32, description="channels of the first stage; doubled at each downsampling")
    max_channels: Count = Field(1024, description="the most channels of a stage")
    depths: tuple[NonNegativeInt, ...] = Field(
        (3, 3, 3, 3, 3, 12), description="blocks per stage, one entry more than strides"
    )
    kernel_size: Count = Field(7, description="kernel of the depthwise convolutions, in steps of their stage")
    latent_dim: Count = Field(32, description="channels per latent")
    per_channel: bool = Field(
        False, description="whether each latent channel has its own mean and scale; false: one for all channels"
    )
    loudness: float | None = Field(
        None, description="loudness in dB FS that clips are scaled to before encoding; null: not scaled"
    )
    posterior: PosteriorConfig = Field(PosteriorConfig(), description="posterior of the latents")

    @model_validator(mode="after")
    def _depths(self):
        if len(self.depths) != len(self.strides) + 1:
            raise UserError(f"depths needs {len(self.strides) + 1} entries, one per stage, got {len(self.depths)}")
        return self

    @model_validator(mode="after")
    def _frames_fit(self):
        if self.front == "waveform" and self.frame_hop != 1:
            raise UserError(f"frame_hop {self.frame_hop}: must be 1 with front waveform, which has no frames")
        if self.front == "spectral":
            require_multiple("frame_window", self.frame_window, "2 · frame_hop =", 2 * self.frame_hop)
        return self

    @property
    def hop(self) -> int:
        """Samples per latent."""
        hop = self.frame_hop
        for stride in self.strides:
            hop *= stride
        return hop


class TextTokenizerConfig(Config):
    """The text tokenizer: bytes, BPE, a backbone's, or one token per class (PAPER §2.2)."""

    kind: Literal["bytes", "bpe", "backbone", "classes"] = Field(
        "bytes",
        description="bytes: the 256 bytes; bpe: byte-level BPE trained on the recipe's text; backbone: that of "
        "model.backbone; classes: one token per distinct text, for class-conditional models",
    )
    vocab_size: int = Field(1024, ge=1, description="entries of a bpe vocabulary; of a backbone, rows of its embedding")
    special: dict[str, int | None] = Field(
        default_factory=dict,
        description="ids of the special tokens (bos, eos, …) that a backbone's vocabulary has; null: it has none",
    )
    ids: dict[str, int | None] | None = Field(
        None, description="ids of all special tokens; written into checkpoints, never into a recipe"
    )

    @model_validator(mode="after")
    def _fits(self):
        if self.kind == "bpe" and self.vocab_size < 256:
            raise UserError(f"vocab_size {self.vocab_size} has no room for the 256 bytes")
        if self.special and self.kind != "backbone":
            raise UserError(
                f"special {sorted(self.special)}: this key is only for kind 'backbone', not for {self.kind!r}"
            )
        beyond = {name: i for name, i in self.special.items() if i is not None and not 0 <= i < self.vocab_size}
        if beyond:
            raise UserError(f"special tokens {beyond} are outside the vocabulary of {self.vocab_size}")
        return self
