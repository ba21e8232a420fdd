"""Pictures: PIL images, a fixed grid of latents each.

Place in the flow: a plug, found by `config/modalities.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ConvImageTokenizerConfig, ImageTokenizerConfig
from ..errors import UserError
from ..media.picture import decode_image, image_to_rgb, load_image, save_image
from ..tokenizers.conv_image import ConvImageTokenizer
from ..tokenizers.image import ImageTokenizer
from ..types import Latents, Modality, Segment

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


@dataclass(frozen=True)
class Image(Segment):
    """A picture, a PIL image of any size and mode, or its latents."""

    content: PILImage | Latents
    modality = "image"


def load(path: str | Path) -> PILImage:
    """The picture in a file, in RGB, turned as its EXIF says. UserError names the path."""
    try:
        return image_to_rgb(load_image(path))
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(str(path)) else f"{path}: {said}") from None


def decode(data: bytes, name: str = "") -> PILImage:
    """The picture in a file's bytes, as `load`. UserError begins with `name` where one is given."""
    return image_to_rgb(decode_image(data, name))


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
    suffixes=(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    written=(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    load=load,
    save=save_image,
    decode=decode,
    is_medium=_is_picture,
    describe=lambda picture: f"{picture.width}×{picture.height}",
    show=lambda picture: picture,
    digest=lambda picture: f"{picture.mode}{picture.size}".encode() + picture.tobytes(),
    length=lambda picture: 0,
    ends_itself=False,
)
