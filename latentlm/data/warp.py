"""Augmented copies of training pictures: slightly turned, sheared, shifted and scaled, the same on every machine.

Place in the flow: 2, between a source's training documents and the latent cache, if a recipe has `augmented_copies`.
Meant for reading pictures (image to text) from few examples; a model that draws would learn the distortions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..modalities.image import Image
from ..types import Document, Latents

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

ANGLE, SHIFT, SCALE = 0.2, 0.1, 0.12
"""Largest turn and shear (radians), shift (relative to the side) and change of scale (relative) of a copy."""


def with_augmented_copies(documents: Sequence[Document], copies: int) -> list[Document]:
    """`documents`, followed by `copies` copies of all of them, each with pictures warped differently.

    Raises UserError if there is no picture.
    """
    found = list(documents)
    result = list(found)
    for copy in range(copies):
        for number, document in enumerate(found):
            rng = np.random.default_rng((copy, number))
            result.append(Document(tuple(_warped(segment, rng) for segment in document.segments)))
    if copies and not any(_is_picture(segment) for document in found for segment in document.segments):
        raise UserError("augmented_copies: the source has no pictures")
    return result


def _is_picture(segment) -> bool:
    return isinstance(segment, Image) and not isinstance(segment.content, Latents)


def _warped(segment, rng: np.random.Generator):
    return replace(segment, content=warp(segment.content, rng)) if _is_picture(segment) else segment


def warp(picture: PILImage, rng: np.random.Generator) -> PILImage:
    """One warped copy of the same size and mode; pixels from outside repeat the edge.

    Interpolation is bicubic: bilinear blurs small pictures, unlike those to be read later (docs/log.md, 2026-11-26).
    """
    from PIL import Image as Pillow

    width, height = picture.size
    angle, shear = rng.uniform(-ANGLE, ANGLE, 2)
    across, down = 1 + rng.uniform(-SCALE, SCALE, 2)
    rows = np.array([[np.cos(angle) * across, shear - np.sin(angle)], [np.sin(angle), np.cos(angle) * down]])
    centre = np.array([width, height]) / 2
    margin = max(width, height)
    pixels = np.asarray(picture)
    padded = np.pad(pixels, ((margin, margin), (margin, margin), *[(0, 0)] * (pixels.ndim - 2)), mode="edge")
    offset = margin + centre - rows @ centre + rng.uniform(-SHIFT, SHIFT, 2) * (width, height)
    matrix = (*rows[0], offset[0], *rows[1], offset[1])
    method = Pillow.Transform.AFFINE
    return Pillow.fromarray(padded).transform(picture.size, method, matrix, resample=Pillow.Resampling.BICUBIC)
