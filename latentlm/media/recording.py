"""A sound file that is written as it is made, and can be played at any moment.

Place in the flow: after 1, the end of `Pipeline.stream`. A WAV file is 16-bit PCM whose header is brought up to date
after every piece: whatever ends the program, what was appended is heard. Other formats go through libsndfile, which
completes them in `close`.
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
"""Bytes of samples: a WAV counts them in 32 bits."""


class Recording:
    """Mono sound appended to `path`, which is created with the first samples.

    A context manager; leaving it, by an error too, closes the file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.num_samples = 0
        self.sample_rate = 1  # until the first piece says otherwise
        self._file = None

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    def append(self, audio: Audio) -> None:
        """The next piece, clipped to [-1, 1]. UserError where the file cannot be written or would be too long."""
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
    """16-bit PCM; samples are written before the header counts them, so a full disk costs only the newest piece."""

    def __init__(self, path: Path, sample_rate: int):
        self.path = path
        self.sample_rate = sample_rate
        self.size = 0
        self.file = path.open("wb", buffering=0)  # what is refused is refused at once, not in `close`
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
        """All of `data` at byte `place`; a single `write` may take a part of it."""
        self.file.seek(place)
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]

    def _header(self) -> bytes:
        rate, length = self.sample_rate, HEADER.size - 8 + self.size
        return HEADER.pack(b"RIFF", length, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", self.size)
