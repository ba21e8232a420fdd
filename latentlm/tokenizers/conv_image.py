"""The convolutional image tokenizer: the autoencoder of latent diffusion as a σ-VAE, one latent per cell (PAPER §2.1).

Place in the flow: 1, beside the ViT in `image.py`, which also has the base class of picture tokenizers.

    pixels (B, 3, H, W) ─ stages of residual blocks, each at half the size ─ middle ─▶ μ, log σ² (B, h, w, 2C)
    z ─ middle ─ stages of residual blocks, each at twice the size ─▶ pixels

diffusers' `AutoencoderKL` and KL-16, the paper's other tokenizer, are configurations of it (`interop/diffusers_vae`).
Legend: `B` images, `N` = h·w cells in raster order, `C` latent channels, `W` channels of a stage.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConvImageTokenizerConfig, ImageReconstructionConfig
from .image import Attention, PictureTokenizer


def group_norm(width: int, num_groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); where the width changes, x passes a 1×1 convolution."""

    def __init__(self, width_in: int, width: int, num_groups: int):
        super().__init__()
        self.norm_1 = group_norm(width_in, num_groups)
        self.conv_1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm_2 = group_norm(width, num_groups)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_1(F.silu(self.norm_1(x)))
        y = self.conv_2(F.silu(self.norm_2(y)))
        return self.skip(x) + y


class AttentionBlock(nn.Module):
    """x + Attention(norm(x)) over the cells, one head."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.norm = group_norm(width, num_groups)
        self.attention = Attention(width, num_heads=1)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, W)
        return x + self.attention(cells).transpose(1, 2).view_as(x)


class ResidualStage(nn.Module):
    """Residual blocks of one width, each optionally followed by attention."""

    def __init__(self, width_in: int, width: int, num_blocks: int, num_groups: int, attention: bool = False):
        super().__init__()
        widths = [width_in] + [width] * num_blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, num_groups) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(AttentionBlock(width, num_groups) for _ in self.blocks if attention)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[index](x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.block_1 = ResidualBlock(width, width, num_groups)
        self.attention = AttentionBlock(width, num_groups)
        self.block_2 = ResidualBlock(width, width, num_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attention(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> (B, P, h, w)."""

    def __init__(self, config: ConvImageTokenizerConfig, num_parameters: int):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        widths = list(pairwise((channels[0], *channels)))
        self.stages = nn.ModuleList(
            ResidualStage(*pair, config.num_blocks, groups, config.deepest_attention and level == len(channels) - 1)
            for level, pair in enumerate(widths)
        )
        self.downs = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2) for width in channels[:-1])
        self.middle = Middle(channels[-1], groups)
        self.norm_out = group_norm(channels[-1], groups)
        self.conv_out = nn.Conv2d(channels[-1], num_parameters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if level < len(self.downs):
                x = self.downs[level](F.pad(x, (0, 1, 0, 1)))  # zeros right and below only, as latent diffusion
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Raw latents (B, C, h, w) -> pixels (B, 3, H, W)."""

    def __init__(self, config: ConvImageTokenizerConfig):
        super().__init__()
        channels, groups = config.channels[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_dim, channels[0], 3, padding=1)
        self.middle = Middle(channels[0], groups)
        widths = pairwise((channels[0], *channels))
        self.stages = nn.ModuleList(ResidualStage(*pair, config.num_blocks + 1, groups) for pair in widths)
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in channels[:-1])
        self.norm_out = group_norm(channels[-1], groups)
        self.conv_out = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv_in(x))
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if level < len(self.ups):
                x = self.ups[level](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class ConvImageTokenizer(PictureTokenizer):
    """Pictures ↔ a grid of latents."""

    def __init__(self, config: ConvImageTokenizerConfig, losses: ImageReconstructionConfig | None = None):
        super().__init__(config, losses)
        P, C = self.posterior.num_parameters, config.latent_dim
        self.encoder = Encoder(config, P)
        self.decoder = Decoder(config)
        self.to_latent = nn.Conv2d(P, P, 1) if config.latent_conv else nn.Identity()
        self.from_latent = nn.Conv2d(C, C, 1) if config.latent_conv else nn.Identity()

    def encode_batch(self, media: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) -> posterior parameters (B, N, P), all valid."""
        self.check_pixels(media)
        parameters = self.to_latent(self.encoder(media)).flatten(2).transpose(1, 2)  # (B, N, P)
        return parameters, torch.ones(parameters.shape[:2], dtype=torch.bool, device=media.device)

    def decode_batch(self, latents: Tensor) -> Tensor:
        """raw latents (B, N, C) -> pixels (B, 3, H, W), not clipped."""
        return self.decoder(self.from_latent(latents.transpose(1, 2).unflatten(2, self.grid)))
