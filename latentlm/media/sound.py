"""Sound: the record `Audio`, files ↔ mono samples through soundfile, rates through soxr.

Place in the flow: before 1; what the tokenizers and the data room use to read, write and resample. Those libraries are
imported when a function is called. A file that is missing or cannot be read gives a UserError of one line that names
it. Sound that is mixed down, or resampled for its reader, is said in the log `latentlm`, on stderr unless the program
takes its logs elsewhere.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import BROKEN, existing, one_line, target
from .sound_file import SoundFileWriter, read_sound

QUIETEST = 1e-6
"""Keeps the loudness of silence finite."""

SILENCE = 2.0**-13
"""A sound whose peak is below this, four steps of 16 bits, is silent."""

NUM_NAMED = 3
"""Clips that are named with what was done to them: a manifest may hold thousands that need the same."""

log = logging.getLogger("latentlm")
_named: dict[str, list[str]] = {}  # what was done -> names of the clips of which it was said


@dataclass(frozen=True)
class Audio:
    """Mono sound: `samples` (N,) float32 in [-1, 1], on the CPU, at `sample_rate` Hz; `name` of the file it is from.

    samples may be given as a numpy array too, on any device and in any type of number: integers are divided by the
    largest that their type has, as sound files mean them. Raises UserError for another shape or kind, and for a rate
    that is no whole number.
    """

    samples: Tensor
    sample_rate: int
    name: str = ""

    def __post_init__(self):
        try:
            object.__setattr__(self, "samples", _mono(self.samples))
            object.__setattr__(self, "sample_rate", _whole_rate(self.sample_rate))
        except UserError as error:
            raise UserError(f"{self.name}: {error}" if self.name else str(error)) from None

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / self.sample_rate

    @classmethod
    def load(cls, path: str | Path, sample_rate: int | None = None) -> Audio:
        """A sound file, mixed down to mono, at `sample_rate` Hz where that is given. UserError names the path."""
        return load_audio(path, sample_rate)

    def save(self, path: str | Path) -> None:
        """Write a sound file, clipped to [-1, 1]; the suffix names the format. UserError names the path."""
        save_audio(self, path)


def _mono(samples: Tensor | np.ndarray) -> Tensor:
    """samples (N,) of any number type -> float32, integers scaled to [-1, 1]; copied only where it has to be."""
    if not isinstance(samples, Tensor | np.ndarray):
        raise UserError(f"Audio takes a numpy array or a tensor of samples, shape (N,), not {type(samples).__name__}")
    if samples.ndim != 1:
        raise UserError(f"samples have shape {tuple(samples.shape)}; expected mono, shape (N,)")
    if isinstance(samples, Tensor) and samples.is_floating_point():
        return samples.float().cpu()
    values = np.asarray(samples.cpu() if isinstance(samples, Tensor) else samples)
    if values.dtype.kind not in "iuf":
        raise UserError(f"samples are of type {values.dtype}; expected floats in [-1, 1] or integers")
    if values.dtype.kind in "iu":
        middle = 2.0 ** (8 * values.dtype.itemsize - 1)  # silence where there is no sign
        values = (values.astype(np.float64) - middle * (values.dtype.kind == "u")) / middle
    return torch.from_numpy(values.astype(np.float32))


def _whole_rate(rate: float) -> int:
    try:
        whole = int(rate) if rate >= 1 else 0
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if not whole or whole != rate:
        raise UserError(f"sample_rate must be a whole number of Hz from 1 on, got {rate!r}")
    return whole


def load_audio(path: str | Path, sample_rate: int | None = None) -> Audio:
    """A sound file as mono float32, brought to `sample_rate` where one is given. UserError names the path.

    A float file may hold NaN and infinities, which are refused: one of them would spoil all latents of its clip.
    """
    audio = _decoded(existing(path), str(path))
    return audio if sample_rate is None else at_rate(audio, sample_rate)


def decode_audio(data: bytes, name: str = "") -> Audio:
    """The sound of a sound file's bytes, as `load_audio`. UserError, which begins with `name` where one is given."""
    return _decoded(data, name)


def _decoded(source: Path | bytes, name: str) -> Audio:
    prefix = f"{name}: " if name else ""
    try:
        samples, rate = read_sound(source)  # (N, channels)
    except (RuntimeError, TypeError, *BROKEN) as error:  # libsndfile's are RuntimeErrors
        said = one_line(error) if isinstance(source, Path) else _without_object(error)
        raise UserError(f"{prefix}not a readable sound file ({said})") from None
    if not np.isfinite(samples).all():
        raise UserError(f"{prefix}holds samples that are not finite numbers")
    audio = Audio(torch.from_numpy(samples.mean(axis=1)), rate, name)
    if samples.shape[1] > 1:
        _say(audio, f"{samples.shape[1]} channels mixed down to one")
    return audio


def _without_object(error: Exception) -> str:
    """What soundfile says of bytes, without the object's name: `Error opening <_io.BytesIO object at …>: …`."""
    return one_line(error).rpartition(">: ")[2]


def save_audio(audio: Audio, path: str | Path) -> None:
    """Write a sound file, clipped to [-1, 1], whole or not at all; the suffix names the format.

    UserError for a suffix that libsndfile lacks and for a path that cannot be written.
    """
    samples = audio.samples.detach().float().cpu().clamp(-1, 1).numpy()
    try:
        with target(path) as place, SoundFileWriter(place, audio.sample_rate) as file:
            file.write(samples)
    except (RuntimeError, TypeError, ValueError, OSError) as error:  # libsndfile's are RuntimeErrors
        raise UserError(f"{path}: cannot write the sound ({one_line(error)})") from None


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


def is_silent(audio: Audio) -> bool:
    """Whether there is nothing to hear: no sample, or a peak below SILENCE."""
    return audio.samples.numel() == 0 or float(audio.samples.abs().max()) < SILENCE


def _say(audio: Audio, what: str) -> None:
    """A line on what was done to a clip, once a process; of each thing done for the first NUM_NAMED clips alone."""
    names, name = _named.setdefault(what, []), audio.name or "sound without a file"
    if name in names or len(names) == NUM_NAMED:
        return
    names.append(name)
    log.warning("%s: %s%s", name, what, "; further clips are not named" if len(names) == NUM_NAMED else "")
