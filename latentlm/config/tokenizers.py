"""Tokenizers of text, images and speech, and their posteriors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from ..errors import UserError
from .base import Config, Count

Fit = Literal["crop", "pad", "stretch"]
FIT = "of pictures that are not square: crop to the centre square, pad with white, or stretch to a square"


class PosteriorConfig(Config):
    """sigma: z = μ + σ·ε with one σ ~ N(0, C_σ²) per example (σ-VAE, PAPER §1.7); learned: plain VAE; none: AE.

    `c_sigma` is a standard deviation relative to std(μ). `weight` is β: of ‖μ‖² for sigma and none, of KL for learned.
    """

    kind: Literal["sigma", "learned", "none"] = "sigma"
    c_sigma: float = Field(0.5, ge=0)
    weight: float = Field(1e-3, ge=0)


class ImageTokenizerConfig(Config):
    """ViT encoder and decoder (PAPER §2.1). A latent a patch: grid = image_size / patch_size, squared."""

    kind: Literal["image"] = "image"
    image_size: Count = 32
    fit: Fit = Field("crop", description=FIT)
    patch_size: Count = 8
    latent_dim: Count = 32
    width: Count = 192
    encoder_layers: NonNegativeInt = 3
    decoder_layers: NonNegativeInt = 3
    num_heads: Count = 4
    class_token: bool = Field(False, description="one token more beside the patches, as the authors' networks")
    encoder_sub_norm: bool = Field(False, description="norms inside attention and feed-forward too, eps 1e-5: BEiT-3")
    per_channel: bool = Field(False, description="normalise each latent channel by itself instead of one scalar")
    posterior: PosteriorConfig = PosteriorConfig()

    @model_validator(mode="after")
    def _divides(self):
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.num_heads:
            raise UserError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class ConvImageTokenizerConfig(Config):
    """The convolutional autoencoder of latent diffusion: a latent a cell of 2^(stages - 1) pixels squared."""

    kind: Literal["conv_image"] = "conv_image"
    image_size: Count = 256
    fit: Fit = Field("crop", description=FIT)
    latent_dim: Count = 16
    channels: tuple[Count, ...] = Field(
        (128, 128, 256, 256, 512), min_length=1, description="of each stage; halved between two"
    )
    num_blocks: Count = Field(2, description="residual blocks of an encoder's stage; a decoder's has one more")
    norm_groups: Count = Field(32, description="of the group norms")
    deepest_attention: bool = Field(False, description="attention after every block of the encoder's last stage: KL-16")
    latent_conv: bool = Field(False, description="1×1 convolutions around the latents (diffusers: the quant convs)")
    per_channel: bool = False
    posterior: PosteriorConfig = PosteriorConfig(kind="learned", weight=1e-6)

    @model_validator(mode="after")
    def _divides(self):
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} is not a multiple of {self.patch_size}, the stages' cell")
        for width in self.channels:
            if width % self.norm_groups:
                raise UserError(f"channels {width} is not a multiple of norm_groups {self.norm_groups}")
        return self

    @property
    def patch_size(self) -> int:
        """Side of the pixels of one latent."""
        return 2 ** (len(self.channels) - 1)


class SpeechTokenizerConfig(Config):
    """Causal ConvNeXt stages (PAPER §4.1). hop = frame_hop · Π strides samples a latent.

    `front` "waveform": strided convolutions on the raw samples, as the paper; "spectral": an STFT of hop `frame_hop`
    in front and an inverse STFT behind, which learns fastest on a small budget (then strides act on frames).
    `parts` "encoder": features of speech that cannot be decoded (VibeVoice's semantic tokenizer, PAPER §6); "decoder":
    latents of others made audible (what VibeVoice-Realtime was released with).
    """

    kind: Literal["speech"] = "speech"
    parts: Literal["both", "encoder", "decoder"] = "both"
    sample_rate: Count = 24000
    front: Literal["waveform", "spectral"] = "waveform"
    frame_hop: Count = Field(1, description="spectral front only: STFT hop in samples; 1 for waveform")
    frame_window: Count = Field(1, description="spectral front only: STFT window in samples")
    strides: tuple[Count, ...] = (2, 4, 5, 5, 8)
    channels: Count = Field(32, description="of the first stage; doubled at each downsampling up to max_channels")
    max_channels: Count = 1024
    depths: tuple[NonNegativeInt, ...] = (3, 3, 3, 3, 3, 12)
    kernel_size: Count = 7
    latent_dim: Count = 32
    per_channel: bool = False
    loudness: float | None = Field(None, description="dB FS that clips are brought to before encoding; None: as is")
    posterior: PosteriorConfig = PosteriorConfig()

    @model_validator(mode="after")
    def _depths(self):
        if len(self.depths) != len(self.strides) + 1:
            raise UserError(f"depths needs {len(self.strides) + 1} entries, one a stage, got {len(self.depths)}")
        return self

    @property
    def hop(self) -> int:
        hop = self.frame_hop
        for stride in self.strides:
            hop *= stride
        return hop


class TextTokenizerConfig(Config):
    """bytes: the 256 bytes, merge-free. bpe: byte-level BPE trained on the recipe's own text, `vocab_size` entries.
    backbone: read from a language model, whose embedding has `vocab_size` rows.
    classes: each distinct text is one token, which opens the span that follows (class-conditional models, PAPER §2).
    """

    kind: Literal["bytes", "bpe", "backbone", "classes"] = "bytes"
    vocab_size: int = Field(1024, ge=1, description="bpe and backbone")
    special: dict[str, int | None] = Field(
        default_factory=dict,
        description="backbone only: special tokens that its vocabulary has, by name (bos, eos, …); null: there is none",
    )
    ids: dict[str, int | None] | None = Field(
        None, description="of all special tokens, as a checkpoint keeps them: a new modality renumbers no old model"
    )

    @model_validator(mode="after")
    def _fits(self):
        if self.kind == "bpe" and self.vocab_size < 256:
            raise UserError(f"vocab_size {self.vocab_size} has no room for the 256 bytes")
        if self.special and self.kind != "backbone":
            raise UserError(
                f"special tokens {sorted(self.special)} are named for a backbone only, kind is {self.kind!r}"
            )
        beyond = {name: i for name, i in self.special.items() if i is not None and not 0 <= i < self.vocab_size}
        if beyond:
            raise UserError(f"special tokens {beyond} are outside the vocabulary of {self.vocab_size}")
        return self
