"""The image tokenizer: a ViT σ-VAE, one latent a patch (PAPER §2.1).

Place in the flow: 1, pictures ──▶ latents and back; `base.py` is the contract, `sigma_vae.py` adds the noise.

    pixels (B, 3, H, W) in [-1, 1] ─ patches ─ ViT ─ Linear ─▶ μ (B, N, C) ─ noise ─▶ z ─ Linear ─ ViT ─ Linear, Tanh,
    Linear ─ patches ─▶ pixels

Departures from the paper: no BEiT-3 initialisation (it is a download), so positions start as 2-D sine and cosine and
are learned from there; the perceptual and adversarial terms are no part of this module.
Legend: `B` images, `N` = h·w patches in raster order, `D` width, `C` latent channels, `p` patch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ImageReconstructionConfig, ImageTokenizerConfig
from ..types import MediaBatch
from .base import Tokenizer
from .losses import image_reconstruction
from .media import image_to_tensor, tensor_to_image

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


class Attention(nn.Module):
    """Full self-attention over the patches of an image."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, N, D/heads) each
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, N, D)


class Block(nn.Module):
    """Pre-norm attention and a 4× GELU feed-forward."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, num_heads)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-6)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class ViT(nn.Module):
    """Positions, blocks, final norm: (B, N, D) -> (B, N, D)."""

    def __init__(self, grid: tuple[int, int], width: int, num_layers: int, num_heads: int):
        super().__init__()
        self.positions = nn.Parameter(sincos_positions(grid, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ImageTokenizer(Tokenizer):
    """Pictures ↔ a grid of latents. `losses` holds the recipe's weights; only losses that have one are computed."""

    modality = "image"

    def __init__(self, config: ImageTokenizerConfig, losses: ImageReconstructionConfig | None = None):
        super().__init__(config)
        self.losses = losses or ImageReconstructionConfig()
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.num_latents = side * side
        patch_dim = 3 * config.patch_size**2
        width = config.width
        self.patch_in = nn.Linear(patch_dim, width)
        self.encoder = ViT(self.grid, width, config.encoder_layers, config.num_heads)
        self.to_latent = nn.Linear(width, self.posterior.num_parameters)
        self.from_latent = nn.Linear(config.latent_dim, width)
        self.decoder = ViT(self.grid, width, config.decoder_layers, config.num_heads)
        self.patch_out = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, patch_dim))
        self.apply(_initialise)

    def analyse(self, media: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) -> posterior parameters (B, N, P), all valid."""
        size = self.config.image_size
        if media.shape[1:] != (3, size, size):
            raise ValueError(f"images of shape {tuple(media.shape[1:])}; this tokenizer reads {(3, size, size)}")
        x = F.pixel_unshuffle(media, self.config.patch_size)  # (B, 3·p·p, h, w)
        x = self.patch_in(x.flatten(2).transpose(1, 2))  # (B, N, D)
        parameters = self.to_latent(self.encoder(x))
        return parameters, torch.ones(parameters.shape[:2], dtype=torch.bool, device=media.device)

    def synthesise(self, latents: Tensor) -> Tensor:
        """raw latents (B, N, C) -> pixels (B, 3, H, W), not clipped."""
        x = self.patch_out(self.decoder(self.from_latent(latents)))  # (B, N, 3·p·p)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.config.patch_size)

    def reconstruction(self, output: Tensor, target: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return image_reconstruction(output, target, self.losses)

    def denormalise(self, latents: Tensor) -> Tensor:
        if len(latents) != self.num_latents:
            raise ValueError(f"an image of this tokenizer has {self.num_latents} latents, got {len(latents)}")
        return super().denormalise(latents)

    def batch(self, media: list[PILImage]) -> MediaBatch:
        """PIL images of any size and mode -> (B, 3, H, W); see `media.image_to_tensor`."""
        size = self.config.image_size
        pixels = torch.stack([image_to_tensor(image, size) for image in media])
        lengths = torch.full((len(media),), size * size)
        return MediaBatch(pixels, lengths).to(self.latent_mean.device)

    def unbatch(self, media: Tensor, counts: list[int]) -> list[PILImage]:
        return [tensor_to_image(pixels) for pixels in media]


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(h·w, D): sine and cosine of row and column at geometric frequencies; a quarter of the width each, rest zero."""
    num_frequencies = width // 4
    frequencies = 10000.0 ** (-torch.arange(num_frequencies) / max(num_frequencies, 1))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.stack((rows, columns), -1).reshape(-1, 2, 1) * frequencies  # (N, 2, D/4)
    waves = torch.cat((angles.sin(), angles.cos()), -1).flatten(1)
    return F.pad(waves, (0, width - waves.shape[1]))


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases, as ViT."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
