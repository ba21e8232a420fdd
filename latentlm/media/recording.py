"""A sound file that is written piece by piece.

Place in the flow: after 1, the end of `Pipeline.stream`. A WAV file is 16-bit PCM whose header is updated after every
piece, so that it can be played at any moment, even after the program was killed. Other formats are written by
libsndfile, which completes them in `close`.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ..errors import UserError
from .files import one_line
from .sound import Audio
from .sound_file import SoundFileWriter

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
LARGEST = 2**32 - HEADER.size
"""The most bytes of samples in a WAV file, whose length fields have 32 bits."""


class Recording:
    """Appends mono sound to the file `path`, which is created with the first samples.

    A context manager that closes the file on exit.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.num_samples = 0
        self.sample_rate = 1  # replaced by that of the first piece
        self._file = None

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    def append(self, audio: Audio) -> None:
        """Write the next piece, clipped to [-1, 1]. UserError where that fails or the file would be too long."""
        if len(audio.samples) == 0:
            return
        samples = audio.samples.detach().float().cpu().clamp(-1, 1).numpy()
        try:
            if self._file is None:
                open_file = _WavFile if self.path.suffix.lower() == ".wav" else SoundFileWriter
                self._file, self.sample_rate = open_file(self.path, audio.sample_rate), audio.sample_rate
            self._file.write(samples)
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # libsndfile's are RuntimeErrors
            raise UserError(f"{self.path}: cannot write the sound ({one_line(error)})") from None
        self.num_samples += len(audio.samples)

    def close(self) -> None:
        """Complete the file. UserError where it cannot be written."""
        try:
            if self._file is not None:
                self._file.close()
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.path}: cannot write the sound ({one_line(error)})") from None

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _WavFile:
    """A 16-bit PCM file. Samples are written before the header, so that a full disk loses only the last piece."""

    def __init__(self, path: Path, sample_rate: int):
        self.path = path
        self.sample_rate = sample_rate
        self.size = 0
        self.file = path.open("wb", buffering=0)  # errors come at once, not in `close`
        try:
            self._put(0, self._header())
        except OSError:
            self.file.close()
            if path.is_file():
                path.unlink()
            raise

    def write(self, samples: np.ndarray) -> None:
        data = (samples * 32768).round().clip(-32768, 32767).astype("<i2").tobytes()
        if self.size + len(data) > LARGEST:
            raise UserError("a WAV file holds at most 4 GiB; write .flac instead")
        self._put(HEADER.size + self.size, data)
        self.size += len(data)
        self._put(0, self._header())

    def close(self) -> None:
        self.file.close()

    def _put(self, place: int, data: bytes) -> None:
        """Write all of `data` at byte `place`; one call of `write` may write only a part."""
        self.file.seek(place)
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]

    def _header(self) -> bytes:
        rate, length = self.sample_rate, HEADER.size - 8 + self.size
        return HEADER.pack(b"RIFF", length, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", self.size)
