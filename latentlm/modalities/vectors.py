"""Vectors: sequences of continuous vectors of any kind: other models' latents, robot actions, sensor readings.

Place in the flow: a plug, found by `config/modalities.py`, and the one to copy: segment, files and tokenizer are here.
A medium is an array (N, C): N steps, the number of which the model decides, of C channels, as many as the data have.
The tokenizer only normalises: each channel has zero mean and unit std over the training data.
Files: .npy with one array, .safetensors with one tensor or with one called "vectors".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from ..config import PosteriorConfig
from ..config.base import Config, Count
from ..errors import UserError
from ..media.files import existing, target
from ..tokenizers.base import Tokenizer, collate_media
from ..types import Latents, MediaBatch, MediaSegment, Modality
from ..weights import save_weights

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

NPY = b"\x93NUMPY"
"""The first bytes of a .npy file."""
SIDE = 256
"""Width and height of a plot in pixels."""
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
MOST_LINES = len(COLOURS)
"""Up to this many channels are drawn as lines; more as rows of grey pixels."""


@dataclass(frozen=True)
class Vectors(MediaSegment):
    """A sequence of vectors: an array (N, C), the path of a file, or `Latents`.

    UserError for another shape, another type, and NaN or infinity.
    """

    content: np.ndarray | str | os.PathLike | Latents
    modality = "vectors"

    @staticmethod
    def medium(content: np.ndarray | Tensor | str | os.PathLike) -> np.ndarray:
        return load(content) if isinstance(content, str | os.PathLike) else checked(content)


def checked(values: np.ndarray | Tensor, name: str = "") -> np.ndarray:
    """`values` as float32 (N, C). UserError, which begins with `name`, for another shape or type, NaN and infinity."""
    origin = name or "vectors"
    if not isinstance(values, np.ndarray | Tensor):
        raise UserError(f"{origin}: expected an array or a tensor (N, C), not {type(values).__name__}")
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
    if array.dtype.kind not in "iuf" or array.ndim != 2 or not array.shape[1]:
        raise UserError(f"{origin}: {array.dtype} of shape {array.shape}; expected numbers of shape (N, C)")
    if not np.isfinite(array).all():
        raise UserError(f"{origin}: holds values that are not finite numbers")
    return np.ascontiguousarray(array, dtype=np.float32)


# ------------------------------------------------------------------ files


def load(path: str | Path) -> np.ndarray:
    """The array (N, C), float32, in a .npy or .safetensors file. UserError names the path."""
    return decode(existing(path).read_bytes(), str(path))


def decode(data: bytes, name: str = "") -> np.ndarray:
    """The array (N, C), float32, in the bytes of such a file. A UserError begins with `name` where one is given."""
    prefix = f"{name}: " if name else ""
    if data.startswith(NPY):
        try:
            return checked(np.load(BytesIO(data), allow_pickle=False), name)
        except (OSError, EOFError, ValueError) as error:
            reason = str(error).removeprefix(prefix)
            raise UserError(f"{prefix}not readable as an array of vectors ({reason})") from None
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{prefix}neither .npy nor .safetensors ({error})") from None
    if len(tensors) != 1 and "vectors" not in tensors:
        names = ", ".join(sorted(tensors)[:10])
        raise UserError(f"{prefix}holds {len(tensors)} tensors ({names}); expected one, or one called 'vectors'")
    return checked(tensors["vectors"] if "vectors" in tensors else next(iter(tensors.values())), name)


def save(vectors: np.ndarray, path: str | Path) -> None:
    """Write an array (N, C), whole or not at all; the suffix, .npy or .safetensors, names the format."""
    suffix = Path(path).suffix.lower()
    if suffix not in MODALITY.written:
        raise UserError(f"{path}: vectors are written to {' or '.join(MODALITY.written)}")
    if suffix == ".safetensors":
        save_weights(path, {"vectors": torch.from_numpy(vectors)})
        return
    with target(path) as place, open(place, "wb") as file:
        np.save(file, vectors, allow_pickle=False)


# ------------------------------------------------------------------ tokenizer


class VectorTokenizerConfig(Config):
    """Only a scale per channel; the posterior has no noise."""

    kind: Literal["vectors"] = Field("vectors", description="vectors: an identity with a scale")
    latent_dim: Count = Field(description="channels per vector")
    per_channel: bool = Field(
        True, description="whether each channel has its own mean and scale; false: one for all channels"
    )
    posterior: PosteriorConfig = Field(PosteriorConfig(kind="none", weight=0.0), description="none: the vector itself")


class VectorTokenizer(Tokenizer):
    """Vectors (N, C) ↔ latents (N, C): only the normalisation of `Tokenizer`, no network."""

    modality = "vectors"

    def batch(self, media: list[np.ndarray]) -> MediaBatch:
        """Arrays (N, C) of any length -> (B, N, C), zero-padded. UserError for another width."""
        for array in media:
            if array.shape[1] != self.latent_dim:
                raise UserError(f"vectors of width {array.shape[1]}; this model reads width {self.latent_dim}")
        batch = collate_media([torch.from_numpy(array).T for array in media])  # (B, C, N)
        return replace(batch, media=batch.media.mT.contiguous()).to(self.latent_mean.device)

    def encode_batch(self, media: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, N, C) unchanged, and their validity (B, N)."""
        return media, torch.arange(media.shape[1], device=media.device) < lengths[:, None]

    def decode_batch(self, latents: Tensor) -> Tensor:
        return latents

    def unbatch(self, media: Tensor, counts: list[int]) -> list[np.ndarray]:
        return [row[:count].float().cpu().numpy() for row, count in zip(media, counts, strict=True)]

    def stream_decoder(self) -> VectorStream:
        """A new decoder of one sequence, piece by piece."""
        self._require_calibrated()
        return VectorStream(self)

    def piece(self, decoded: Tensor) -> np.ndarray:
        return decoded.float().cpu().numpy()


class VectorStream:
    """Decodes the latents of one sequence in pieces of any size, without delay."""

    def __init__(self, tokenizer: VectorTokenizer):
        self._tokenizer = tokenizer

    def push(self, latents: Tensor) -> Tensor:
        """latents (n, C), n ≥ 0 -> vectors (n, C)."""
        return self._tokenizer.denormalise(latents)

    def flush(self) -> Tensor:
        """No vectors (0, C): `push` holds nothing back."""
        return self._tokenizer.latent_mean.new_zeros(0, self._tokenizer.latent_dim)


def from_data(media: Sequence[np.ndarray]) -> VectorTokenizer:
    """A tokenizer calibrated on `media`, which must have the same width.

    Raises UserError where they differ in width, and where a channel does not vary.
    """
    tokenizer = VectorTokenizer(VectorTokenizerConfig(latent_dim=media[0].shape[1])).eval()
    tokenizer.calibrate(tokenizer.batch([array]) for array in media)
    return tokenizer


# ------------------------------------------------------------------ shown


def plot(vectors: np.ndarray) -> PILImage:
    """A plot of vectors (N, C), SIDE² pixels: two channels as a path in the plane, others as lines over the steps; more
    than MOST_LINES channels as rows of grey pixels."""
    from PIL import Image, ImageDraw

    N, C = vectors.shape
    if C > MOST_LINES and N:
        grey = _to_unit(vectors.T, vectors) * 255
        return Image.fromarray(grey.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST).convert("RGB")
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    steps = np.arange(N, dtype=np.float32)[:, None]
    if C == 2:
        lines = [vectors]
    else:
        lines = [np.concatenate((steps, _to_unit(vectors[:, [c]], vectors) * max(N - 1, 1)), 1) for c in range(C)]
    for line, colour in zip(lines, COLOURS, strict=False):
        place = _to_unit(line, np.concatenate(lines)) if C == 2 else line / max(N - 1, 1)
        points = [(8 + x * (SIDE - 17), SIDE - 9 - y * (SIDE - 17)) for x, y in place.tolist()]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    return picture


def _to_unit(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """`values` shifted and scaled so that the values of `among` lie in [0, 1]."""
    if not among.size:
        return values
    low, high = among.min(), among.max()
    return (values - low) / max(high - low, 1e-9)


def _is_vectors(medium: Any) -> bool:
    return isinstance(medium, np.ndarray | Tensor) and medium.ndim == 2


MODALITY = Modality(
    name="vectors",
    segment=Vectors,
    tokenizers={"vectors": (VectorTokenizerConfig, VectorTokenizer)},
    suffixes=(".npy", ".safetensors"),
    written=(".npy", ".safetensors"),
    load=load,
    save=save,
    decode=decode,
    is_medium=_is_vectors,
    describe=lambda vectors: f"{vectors.shape[0]}×{vectors.shape[1]}",
    show=plot,
    digest=lambda vectors: str(vectors.shape).encode() + vectors.tobytes(),
    length=len,
    ends_itself=True,
    from_data=from_data,
)
