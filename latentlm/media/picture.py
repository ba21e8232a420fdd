"""Pictures: files and PIL images ↔ tensors, through Pillow.

Place in the flow: before 1; what the tokenizers and the data room use to read, write and resize. Pillow is imported
when a function is called. A file that is missing or cannot be read gives a UserError of one line that names it.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import BROKEN, existing, one_line, target

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


def load_image(path: str | Path) -> PILImage:
    """A picture as it is shown (EXIF orientation applied), in its own mode. UserError names the path."""
    return _decoded(existing(path), f"{path}: ")


def decode_image(data: bytes, name: str = "") -> PILImage:
    """The picture in an image file's bytes, as `load_image`. UserError, beginning with `name` where one is given."""
    return _decoded(BytesIO(data), f"{name}: " if name else "")


def _decoded(source: Path | BytesIO, prefix: str) -> PILImage:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            _check_scale(image)
            return ImageOps.exif_transpose(image.copy())
    except UnidentifiedImageError as error:
        said = one_line(error) if isinstance(source, Path) else "of no known format"
        raise UserError(f"{prefix}not a readable image ({said})") from None
    except (Image.DecompressionBombError, *BROKEN, SyntaxError) as error:
        raise UserError(f"{prefix}not a readable image ({one_line(error)})") from None


def save_image(image: PILImage, path: str | Path) -> None:
    """Write a picture, whole or not at all; the suffix names the format.

    UserError for a suffix that Pillow does not know and for a path that cannot be written.
    """
    try:
        with target(path) as place:
            image.save(place)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot write the image ({one_line(error)})") from None


def image_to_rgb(image: PILImage) -> PILImage:
    """Any mode to RGB: transparency is laid over white, 16-bit grey is scaled to 8.

    UserError for floating-point pixels, of which nothing says what is white.
    """
    from PIL import Image

    _check_scale(image)
    if image.mode in {"I;16", "I;16B", "I;16L", "I"}:
        values = np.asarray(image).astype(np.int64)
        scaled = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resize_square(image: PILImage, size: int) -> PILImage:
    """To size × size. A square that fits a whole number of times is enlarged by repetition (digits of 8 × 8 keep their
    pixels); anything else is resized to cover the square (Lanczos down, bicubic up) and cropped at its centre."""
    from PIL import Image, ImageOps

    if image.width == image.height and size % image.width == 0:
        return image.resize((size, size), Image.Resampling.NEAREST)
    shrinks = min(image.size) > size
    method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return ImageOps.fit(image, (size, size), method=method)


def image_to_tensor(image: PILImage, size: int) -> Tensor:
    """A picture of any size and mode -> (3, size, size) float32 in [-1, 1]."""
    pixels = np.array(resize_square(image_to_rgb(image), size), dtype=np.float32)  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 127.5 - 1


def tensor_to_image(pixels: Tensor) -> PILImage:
    """(3, H, W) in [-1, 1], clipped, -> RGB picture."""
    from PIL import Image

    levels = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _check_scale(image: PILImage) -> None:
    if image.mode == "F":
        raise UserError("its pixels are floating-point numbers without a scale; save it with 8 or 16 bits")
