"""Pictures: PIL images, each a fixed grid of latents.

Place in the flow: a plug, found by `config/modalities.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import ConvImageTokenizerConfig, ImageTokenizerConfig
from ..errors import UserError
from ..media.picture import decode_image, load_image, save_image
from ..tokenizers.conv_image import ConvImageTokenizer
from ..tokenizers.image import ImageTokenizer
from ..types import Latents, MediaSegment, Modality

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


@dataclass(frozen=True)
class Image(MediaSegment):
    """A picture: a PIL image of any size and mode, the path of a file, or `Latents`. UserError for anything else."""

    content: PILImage | str | os.PathLike | Latents
    modality = "image"

    @staticmethod
    def medium(content: PILImage | str | os.PathLike) -> PILImage:
        if isinstance(content, str | os.PathLike):
            return load_image(content)
        if not _is_picture(content):
            raise UserError(f"Image takes a PIL image, the path of a file or Latents, not {type(content).__name__}")
        return content


def _is_picture(medium: Any) -> bool:
    from PIL import Image as Pillow

    return isinstance(medium, Pillow.Image)


MODALITY = Modality(
    name="image",
    segment=Image,
    tokenizers={
        "image": (ImageTokenizerConfig, ImageTokenizer),
        "conv_image": (ConvImageTokenizerConfig, ConvImageTokenizer),
    },
    suffixes=(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    written=(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    load=load_image,
    save=save_image,
    decode=decode_image,
    is_medium=_is_picture,
    describe=lambda picture: f"{picture.width}×{picture.height}",
    show=lambda picture: picture,
    digest=lambda picture: f"{picture.mode}{picture.size}".encode() + picture.tobytes(),
    length=lambda picture: 0,
    ends_itself=False,
)
