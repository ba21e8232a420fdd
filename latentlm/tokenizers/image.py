"""The image tokenizer: a ViT σ-VAE, one latent per patch (PAPER §2.1).

Place in the flow: 1, pictures ──▶ latents and back; `base.py` has the base class, `sigma_vae.py` adds the noise.

    pixels (B, 3, H, W) in [-1, 1] ─ patches ─ ViT ─ Linear ─▶ μ (B, N, C) ─ noise ─▶ z ─ Linear ─ ViT ─ Linear, Tanh,
    Linear ─ patches ─▶ pixels

Departures from the paper: no BEiT-3 initialisation (it is a download); position embeddings start as 2-D sine and
cosine and are learned. Perceptual and adversarial losses are not here. The authors' networks have a class token and,
with BEiT-3, norms inside attention and feed-forward: both are options, so that their weights load.
Legend: `B` images, `N` = h·w patches in raster order, `D` width, `C` latent channels, `p` patch size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConvImageTokenizerConfig, ImageReconstructionConfig, ImageTokenizerConfig
from ..errors import UserError
from ..media.picture import image_to_tensor, tensor_to_image
from ..types import MediaBatch
from .base import Tokenizer, collate_media
from .losses import image_reconstruction

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

EPS = 1e-6
SUB_NORM_EPS = 1e-5


class Attention(nn.Module):
    """Full self-attention over the patches of an image; `sub_norm`: normalised before the output map (BEiT-3)."""

    def __init__(self, width: int, num_heads: int, sub_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, eps=SUB_NORM_EPS) if sub_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, N, D/heads) each
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(self.norm(y.transpose(1, 2).flatten(2)))  # (B, N, D)


class Block(nn.Module):
    """Pre-norm attention and a 4× GELU feed-forward; `sub_norm`: each with a norm inside as well (BEiT-3)."""

    def __init__(self, width: int, num_heads: int, sub_norm: bool = False):
        super().__init__()
        eps = SUB_NORM_EPS if sub_norm else EPS
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, num_heads, sub_norm)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        inner = [nn.LayerNorm(4 * width, eps=eps)] if sub_norm else []
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), *inner, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class ViT(nn.Module):
    """Positions, blocks, final norm: (B, N, D) -> (B, N, D). A class token, if any, is not part of the output."""

    def __init__(self, grid: tuple[int, int], config: ImageTokenizerConfig, num_layers: int, sub_norm: bool = False):
        super().__init__()
        width = config.width
        self.positions = nn.Parameter(sincos_positions(grid, width))
        self.class_token = nn.Parameter(torch.zeros(width)) if config.class_token else None  # its position included
        self.blocks = nn.ModuleList(Block(width, config.num_heads, sub_norm) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=SUB_NORM_EPS if sub_norm else EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)  # (B, 1 + N, D)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x if self.class_token is None else x[:, 1:]


class PictureTokenizer(Tokenizer):
    """Base class of picture tokenizers: square pictures of side `image_size`, a square grid of latents, the losses.

    losses: weights of the recipe; losses of weight 0 are not computed.
    """

    modality = "image"

    def __init__(
        self,
        config: ImageTokenizerConfig | ConvImageTokenizerConfig,
        losses: ImageReconstructionConfig | None = None,
    ):
        super().__init__(config)
        self.losses = losses or ImageReconstructionConfig()
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.num_latents = side * side

    def check_pixels(self, media: Tensor) -> None:
        """Raise UserError unless media is (B, 3, image_size, image_size)."""
        size = self.config.image_size
        if media.shape[1:] != (3, size, size):
            raise UserError(f"images of shape {tuple(media.shape[1:])}; this tokenizer reads {(3, size, size)}")

    def reconstruction(self, output: Tensor, target: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        return image_reconstruction(output, target, self.losses)

    def denormalise(self, latents: Tensor) -> Tensor:
        if len(latents) != self.num_latents:
            raise UserError(f"an image of this tokenizer has {self.num_latents} latents, got {len(latents)}")
        return super().denormalise(latents)

    def batch(self, media: list[PILImage]) -> MediaBatch:
        """PIL images of any size and mode -> (B, 3, H, W), made square by the config's `fit` (`image_to_tensor`)."""
        size, fit = self.config.image_size, self.config.fit
        return collate_media([image_to_tensor(image, size, fit) for image in media]).to(self.latent_mean.device)

    def unbatch(self, media: Tensor, counts: list[int]) -> list[PILImage]:
        return [tensor_to_image(pixels) for pixels in media]


class ImageTokenizer(PictureTokenizer):
    """Pictures ↔ one latent per patch, by one ViT for encoding and one for decoding."""

    def __init__(self, config: ImageTokenizerConfig, losses: ImageReconstructionConfig | None = None):
        super().__init__(config, losses)
        patch_dim = 3 * config.patch_size**2
        width = config.width
        self.patch_in = nn.Linear(patch_dim, width)
        self.encoder = ViT(self.grid, config, config.encoder_layers, config.encoder_sub_norm)
        self.to_latent = nn.Linear(width, self.posterior.num_parameters)
        self.from_latent = nn.Linear(config.latent_dim, width)
        self.decoder = ViT(self.grid, config, config.decoder_layers)
        self.patch_out = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, patch_dim))
        self.apply(_initialise)

    def encode_batch(self, media: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) -> posterior parameters (B, N, P), all valid."""
        self.check_pixels(media)
        x = F.pixel_unshuffle(media, self.config.patch_size)  # (B, 3·p·p, h, w)
        x = self.patch_in(x.flatten(2).transpose(1, 2))  # (B, N, D)
        parameters = self.to_latent(self.encoder(x))
        return parameters, torch.ones(parameters.shape[:2], dtype=torch.bool, device=media.device)

    def decode_batch(self, latents: Tensor) -> Tensor:
        """raw latents (B, N, C) -> pixels (B, 3, H, W), not clipped."""
        x = self.patch_out(self.decoder(self.from_latent(latents)))  # (B, N, 3·p·p)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.config.patch_size)


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(h·w, D): sine and cosine of row and of column at geometric frequencies, a quarter of D each; the rest zero."""
    num_frequencies = width // 4
    frequencies = 10000.0 ** (-torch.arange(num_frequencies) / max(num_frequencies, 1))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.stack((rows, columns), -1).reshape(-1, 2, 1) * frequencies  # (N, 2, D/4)
    waves = torch.cat((angles.sin(), angles.cos()), -1).flatten(1)
    return F.pad(waves, (0, width - waves.shape[1]))


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases, as in ViT."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
