"""Pictures: files and PIL images ↔ tensors, through Pillow.

Place in the flow: before 1; the tokenizers and the data room read, write and resize with it. Pillow is imported
when a function is called. A file that is missing or cannot be read gives a UserError of one line that names it. A
picture that is cropped to its centre square gives a `Notice`.
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
from .remarks import remark

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

NAME = "latentlm.name"
"""Key of a picture's `info` with the name of its file, for notices."""
LARGEST_16_BIT = 65535


def load_image(path: str | Path) -> PILImage:
    """The picture in a file, in RGB (`image_to_rgb`), rotated by its EXIF orientation. UserError names the path."""
    return _decoded(existing(path), str(path))


def decode_image(data: bytes, name: str = "") -> PILImage:
    """The picture in an image file's bytes, as `load_image`. A UserError begins with `name` where one is given."""
    return _decoded(BytesIO(data), name)


def _decoded(source: Path | BytesIO, name: str) -> PILImage:
    from PIL import Image, ImageOps, UnidentifiedImageError

    prefix = f"{name}: " if name else ""
    try:
        with Image.open(source) as image:
            picture = image_to_rgb(ImageOps.exif_transpose(image.copy()))
        picture.info[NAME] = name
        return picture
    except UnidentifiedImageError as error:
        reason = one_line(error) if isinstance(source, Path) else "of no known format"
        raise UserError(f"{prefix}not a readable image ({reason})") from None
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
    """A picture of any mode in RGB; transparency is laid over white.

    Integers (modes I and I;16) are read as 8 bits if all are at most 255, and as 16 bits, of which the upper 8 are
    kept, if all are at most 65535. Raises UserError for other integers and for floats, whose white level is unknown.
    """
    from PIL import Image

    if image.mode == "F":
        raise UserError("its pixels are floating-point numbers without a scale; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        lowest, highest = int(values.min(initial=0)), int(values.max(initial=0))
        if lowest < 0 or highest > LARGEST_16_BIT:
            raise UserError(f"its pixels are integers from {lowest} to {highest}; save it with 8 or 16 bits")
        image = Image.fromarray((values >> 8 if highest > 255 else values).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def to_square(image: PILImage, fit: str) -> PILImage:
    """The whole RGB picture as a square of its longer side: "pad" puts it on white, "stretch" widens it."""
    from PIL import Image

    side = max(image.size)
    if fit == "stretch":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def resize_square(image: PILImage, size: int, fit: str = "crop") -> PILImage:
    """An RGB picture at size × size: Lanczos where it shrinks, else bicubic.

    fit, for a picture that is not square: "crop" keeps its centre square, "pad" adds white at its sides,
    "stretch" changes its proportions. A square of which `size` is a multiple is enlarged by repeating its pixels, so
    that digits of 8 × 8 stay sharp.
    """
    from PIL import Image, ImageOps

    if fit == "pad" and image.width != image.height:
        image = to_square(image, fit)
    if image.width == image.height and size % image.width == 0:
        return image.resize((size, size), Image.Resampling.NEAREST)
    shrinks = min(image.size) > size
    method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    return image.resize((size, size), method) if fit == "stretch" else ImageOps.fit(image, (size, size), method=method)


def image_to_tensor(image: PILImage, size: int, fit: str = "crop") -> Tensor:
    """A picture of any size and mode -> (3, size, size) float32 in [-1, 1]; `fit` as in `resize_square`.

    Gives a `Notice` where a picture is cropped. UserError for pixels that `image_to_rgb` refuses.
    """
    if fit == "crop" and image.width != image.height:
        name = image.info.get(NAME) or "a picture without a file"
        remark(name, "not square, cropped to its centre square (fit: pad or stretch of the tokenizer keeps it all)")
    pixels = np.array(resize_square(image_to_rgb(image), size, fit), dtype=np.float32)  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 127.5 - 1


def tensor_to_image(pixels: Tensor) -> PILImage:
    """(3, H, W) in [-1, 1], clipped, -> RGB picture."""
    from PIL import Image

    levels = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
