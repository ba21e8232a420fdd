"""Files and objects ↔ tensors: pictures through Pillow, sound through soundfile, rates through soxr.

Place in the flow: before 1; what the tokenizers and the data room use to read, write, resize and resample.
Nothing here imports those libraries before it is called. Every file that is missing or cannot be read gives a
ValueError of one line that names it. Sound that is mixed down, or resampled for its reader, is said in the log
`latentlm`, on stderr unless the program takes its logs elsewhere.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..types import Audio
from ..weights import replacing
from .sound_file import SoundFileWriter, read_sound

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

QUIETEST = 1e-6
"""Keeps the loudness of silence finite."""

NUM_NAMED = 3
"""Clips that are named with what was done to them: a manifest may hold thousands that need the same."""

BROKEN = (OSError, ValueError, MemoryError)
"""What broken files raise beside a library's own errors; a corrupt header may ask for more memory than there is."""

log = logging.getLogger("latentlm")
_named: dict[str, list[str]] = {}  # what was done -> names of the clips of which it was said


# ---------------------------------------------------------------- pictures


def load_image(path: str | Path) -> PILImage:
    """A picture as it is shown (EXIF orientation applied), in its own mode. ValueError names the path."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = _existing(path)
    try:
        with Image.open(path) as image:
            _check_scale(image)
            return ImageOps.exif_transpose(image.copy())
    except (UnidentifiedImageError, Image.DecompressionBombError, *BROKEN, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable image ({one_line(error)})") from None


def save_image(image: PILImage, path: str | Path) -> None:
    """Write a picture, whole or not at all; the suffix names the format.

    ValueError for a suffix that Pillow does not know and for a path that cannot be written.
    """
    try:
        with _target(path) as target:
            image.save(target)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot write the image ({one_line(error)})") from None


def image_to_rgb(image: PILImage) -> PILImage:
    """Any mode to RGB: transparency is laid over white, 16-bit grey is scaled to 8.

    ValueError for floating-point pixels, of which nothing says what is white.
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


# ---------------------------------------------------------------- sound


def load_audio(path: str | Path, sample_rate: int | None = None) -> Audio:
    """A sound file as mono float32, brought to `sample_rate` where one is given. ValueError names the path.

    A float file may hold NaN and infinities, which are refused: one of them would spoil all latents of its clip.
    """
    path = _existing(path)
    try:
        samples, rate = read_sound(path)  # (N, channels)
    except (RuntimeError, TypeError, *BROKEN) as error:  # libsndfile's are RuntimeErrors
        raise ValueError(f"{path}: not a readable sound file ({one_line(error)})") from None
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: holds samples that are not finite numbers")
    audio = Audio(torch.from_numpy(samples.mean(axis=1)), rate, str(path))
    if samples.shape[1] > 1:
        _say(audio, f"{samples.shape[1]} channels mixed down to one")
    return audio if sample_rate is None else at_rate(audio, sample_rate)


def save_audio(audio: Audio, path: str | Path) -> None:
    """Write a sound file, clipped to [-1, 1], whole or not at all; the suffix names the format.

    ValueError for a suffix that libsndfile lacks and for a path that cannot be written.
    """
    samples = audio.samples.detach().float().cpu().clamp(-1, 1).numpy()
    try:
        with _target(path) as target, SoundFileWriter(target, audio.sample_rate) as file:
            file.write(samples)
    except (RuntimeError, TypeError, ValueError, OSError) as error:  # libsndfile's are RuntimeErrors
        raise ValueError(f"{path}: cannot write the sound ({one_line(error)})") from None


def at_rate(audio: Audio, sample_rate: int) -> Audio:
    """A user's sound for a reader of `sample_rate` Hz: as `resample`, and a line of the log where the rate differs."""
    if audio.sample_rate != sample_rate:
        _say(audio, f"{audio.sample_rate:,} Hz resampled to {sample_rate:,} Hz")
    return resample(audio, sample_rate)


def resample(audio: Audio, sample_rate: int) -> Audio:
    """The same sound at `sample_rate` Hz (soxr, high quality); unchanged where it has that rate already."""
    if audio.sample_rate == sample_rate:
        return audio
    import soxr

    samples = soxr.resample(audio.samples.detach().float().cpu().numpy(), audio.sample_rate, sample_rate)
    samples = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return replace(audio, samples=samples, sample_rate=sample_rate)


def normalise_loudness(samples: Tensor, level: float) -> Tensor:
    """samples (N,) at a root mean square of `level` dB relative to full scale, or less where a peak would exceed 1."""
    samples = samples * (10 ** (level / 20) / (samples.square().mean().sqrt() + QUIETEST))
    peak = samples.abs().max()
    return samples / (peak + QUIETEST) if peak > 1 else samples


def _say(audio: Audio, what: str) -> None:
    """A line on what was done to a clip, once a process; of each thing done for the first NUM_NAMED clips alone."""
    names, name = _named.setdefault(what, []), audio.name or "sound without a file"
    if name in names or len(names) == NUM_NAMED:
        return
    names.append(name)
    log.warning("%s: %s%s", name, what, "; further clips are not named" if len(names) == NUM_NAMED else "")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path


def _check_scale(image: PILImage) -> None:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a scale; save it with 8 or 16 bits")


def _target(path: str | Path) -> AbstractContextManager[Path]:
    """What to write instead of `path`: a temporary file that takes its place, or itself for a link or device."""
    path = Path(path)
    in_place = path.is_symlink() or (path.exists() and not path.is_file())
    return nullcontext(path) if in_place else replacing(path)


def one_line(error: Exception) -> str:
    """What an error says; of the operating system's the words alone."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
