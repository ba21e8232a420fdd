"""Sound: the record `Audio`, files ↔ mono samples through soundfile, rates through soxr.

Place in the flow: before 1; the tokenizers and the data room read, write and resample with it. The libraries are
imported when a function is called. A file that is missing, broken or without usable sound gives a UserError of one line
that names it. Sound that is mixed down, resampled or silent gives a `Notice`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .files import BROKEN, existing, one_line, target
from .remarks import remark
from .sound_file import SoundFileWriter, read_sound

SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".mp3",
    ".opus",
    ".oga",
    ".aiff",
    ".aif",
    ".aifc",
    ".au",
    ".snd",
    ".caf",
    ".w64",
    ".rf64",
    ".bwf",
    ".wave",
    ".voc",
    ".svx",
    ".sph",
    ".nist",
)
"""Suffixes of the sound files that are read, the most common first."""
QUIETEST = 1e-6
"""Keeps the loudness of silence finite."""
LOUDEST = 16.0
"""Peaks above this (24 dB over full scale) are samples of another scale, such as -32768 to 32767."""
SILENCE = 2.0**-13
"""A sound whose peak is below this, four steps of 16 bits, is silent."""
CANCELLED = 0.01
"""Root mean square of the mono sound relative to its channels', below which the channels cancel each other."""
SHORTEST = 1e-3
"""In seconds. Shorter files are refused: at the rates of tokenizers they could have no sample."""
SILENT = "silent: there is nothing to hear in it"


@dataclass(frozen=True)
class Audio:
    """Mono sound: `samples` (N,) float32 in [-1, 1], on the CPU, at `sample_rate` Hz; `name` of the file it is from.

    samples may also be a numpy array, on any device and of any type of number; integers are divided by the largest
    value of their type, as in sound files. Raises UserError for another shape or type, for NaN and infinity, for a peak
    above LOUDEST, and for a rate that is no whole number.
    """

    samples: Tensor
    sample_rate: int
    name: str = ""

    def __post_init__(self):
        try:
            object.__setattr__(self, "samples", _in_range(_mono(self.samples)))
            object.__setattr__(self, "sample_rate", _whole_rate(self.sample_rate))
        except UserError as error:
            raise UserError(f"{self.name}: {error}" if self.name else str(error)) from None

    def __repr__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return f"<Audio: {name}{self.seconds:.2f} s at {self.sample_rate:,} Hz>"

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
        middle = 2.0 ** (8 * values.dtype.itemsize - 1)  # the zero level of unsigned integers
        values = (values.astype(np.float64) - middle * (values.dtype.kind == "u")) / middle
    return torch.from_numpy(values.astype(np.float32))


def _in_range(samples: Tensor) -> Tensor:
    """`samples`; UserError where they are no sound: not finite, or at another scale."""
    if not bool(samples.isfinite().all()):
        raise UserError("holds samples that are not finite numbers")
    peak = float(samples.abs().max()) if len(samples) else 0.0
    if peak > LOUDEST:
        raise UserError(f"its peak is {peak:,.0f}; samples are floats in [-1, 1] (16-bit numbers: divide by 32768)")
    return samples


def _whole_rate(rate: float) -> int:
    try:
        whole = int(rate) if rate >= 1 else 0
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if not whole or whole != rate:
        raise UserError(f"sample_rate must be a whole number of Hz from 1 on, got {rate!r}")
    return whole


def load_audio(path: str | Path, sample_rate: int | None = None) -> Audio:
    """The sound in a file as mono float32, resampled to `sample_rate` where one is given.

    Raises UserError, which names the path, for a file that is missing, broken or cut off, without sound (shorter than
    SHORTEST), and whose samples `Audio` refuses. Gives a `Notice` where channels are mixed down or cancel each other,
    where the sound is silent, and where it is resampled.
    """
    audio = _decoded(existing(path), str(path))
    return audio if sample_rate is None else at_rate(audio, sample_rate)


def decode_audio(data: bytes, name: str = "") -> Audio:
    """The sound in a sound file's bytes, as `load_audio`. A UserError begins with `name` where one is given."""
    return _decoded(data, name)


def _decoded(source: Path | bytes, name: str) -> Audio:
    prefix = f"{name}: " if name else ""
    try:
        samples, rate = read_sound(source)  # (N, channels)
    except (RuntimeError, TypeError, *BROKEN) as error:  # libsndfile's are RuntimeErrors
        reason = one_line(error) if isinstance(source, Path) else _without_object(error)
        raise UserError(f"{prefix}not a readable sound file ({reason})") from None
    audio = Audio(torch.from_numpy(samples.mean(axis=1)), rate, name)
    if len(samples) == 0:
        raise UserError(f"{prefix}holds no sound")
    if audio.seconds < SHORTEST:
        raise UserError(f"{prefix}holds {1000 * audio.seconds:.2g} ms of sound, too short to be of use")
    _remark_on_channels(audio, samples)
    return audio


def _remark_on_channels(audio: Audio, samples: np.ndarray) -> None:
    """Give the notices on a sound that was mixed down from `samples` (N, channels)."""
    num_channels = samples.shape[1]
    if num_channels > 1:
        remark(_name(audio), f"{num_channels} channels mixed down to one")
        mono, power = audio.samples.square().mean(), float(np.square(samples).mean())
        if power > 0 and float(mono) < CANCELLED**2 * power:
            remark(_name(audio), "its channels cancel each other: mixed down to one they are silence, or nearly")
            return
    remark_on_silence(audio)


def is_silent(audio: Audio) -> bool:
    """Whether there is nothing to hear: no sample, or a peak below SILENCE."""
    return audio.samples.numel() == 0 or float(audio.samples.abs().max()) < SILENCE


def remark_on_silence(audio: Audio) -> None:
    """Give a notice if a sound of the training data is silent."""
    if is_silent(audio):
        remark(_name(audio), SILENT)


def check_voice(audio: Audio) -> Audio:
    """`audio`, a clip of a speaker. UserError, which names it, where it is silent."""
    if is_silent(audio):
        raise UserError(f"{_name(audio)}: the clip is silent, it cannot be a voice")
    return audio


def _name(audio: Audio) -> str:
    return audio.name or "sound without a file"


def _without_object(error: Exception) -> str:
    """The message of `error` without the object's name: `Error opening <_io.BytesIO object at …>: …`."""
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
    """The same sound at `sample_rate` Hz, as `resample`, with a `Notice` where that changes it."""
    if audio.sample_rate != sample_rate:
        remark(_name(audio), f"{audio.sample_rate:,} Hz resampled to {sample_rate:,} Hz")
    return resample(audio, sample_rate)


def resample(audio: Audio, sample_rate: int) -> Audio:
    """The same sound at `sample_rate` Hz (soxr, high quality); unchanged where it has that rate already.

    Raises UserError, which names the sound, where nothing of it is left: less than one sample at that rate.
    """
    if audio.sample_rate == sample_rate:
        return audio
    import soxr

    samples = soxr.resample(audio.samples.detach().float().cpu().numpy(), audio.sample_rate, sample_rate)
    if audio.samples.numel() and not len(samples):
        raise UserError(f"{_name(audio)}: {1000 * audio.seconds:.2g} ms of sound, no sample at {sample_rate:,} Hz")
    samples = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return replace(audio, samples=samples, sample_rate=sample_rate)


def normalise_loudness(samples: Tensor, level: float) -> Tensor:
    """samples (N,) at a root mean square of `level` dB relative to full scale, or less where a peak would exceed 1."""
    samples = samples * (10 ** (level / 20) / (samples.square().mean().sqrt() + QUIETEST))
    peak = samples.abs().max()
    return samples / (peak + QUIETEST) if peak > 1 else samples
