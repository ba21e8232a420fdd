"""Sound files in any format of libsndfile, complete or refused.

Place in the flow: below `sound.py` and `recording.py`. libsndfile reads what is left of a file that was cut off as if
it were all, and does not say of every format that the disk was full while it wrote. A clip of half its text is a wrong
pair to learn from: both are errors here.
"""

from __future__ import annotations

import struct
from io import SEEK_END, BytesIO
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from ..errors import UserError

OPEN_END = 0x7FFF0000
"""A size from here on stands in a WAV that was written without knowing its own."""
OGG_PAGE = struct.Struct("<4sBBqIIIB")
LAST_PAGE = 4
"""Flag of the page that ends an Ogg stream."""
MOST_OF_A_PAGE = OGG_PAGE.size + 255 + 255 * 255


def read_sound(source: Path | bytes) -> tuple[np.ndarray, int]:
    """All samples (N, channels) float32 and their rate, of a file or of a file's bytes.

    Raises UserError for a file that is cut off or broken in the middle, and what libsndfile raises for others.
    """
    import soundfile

    with soundfile.SoundFile(str(source) if isinstance(source, Path) else BytesIO(source)) as file:
        samples = file.read(dtype="float32", always_2d=True)
        if len(samples) < file.frames and file.format != "MP3":  # whose length may be a guess
            raise UserError(f"{len(samples)} of {file.frames} samples can be read")
        kind, rate = file.format, file.samplerate
    is_cut_off = {"WAV": _wav_is_cut_off, "WAVEX": _wav_is_cut_off, "OGG": _ogg_is_cut_off}.get(kind)
    if is_cut_off is not None:
        with open(source, "rb") if isinstance(source, Path) else BytesIO(source) as file:
            if is_cut_off(file, file.seek(0, SEEK_END)):
                raise UserError("cut off: its end is missing")
    return samples, rate


def _wav_is_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether the samples are fewer bytes than their header says."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            return file.tell() + length > size and length < OPEN_END
        file.seek(length + length % 2, 1)
    return False


def _ogg_is_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether the last page does not end its stream, or is not all there."""
    file.seek(max(0, size - 2 * MOST_OF_A_PAGE))
    end = file.read()
    start = end.rfind(b"OggS")
    if start < 0 or len(end) < start + OGG_PAGE.size:
        return True
    *_, flags, _, _, _, _, num_segments = OGG_PAGE.unpack_from(end, start)
    table = end[start + OGG_PAGE.size :][:num_segments]
    return not flags & LAST_PAGE or len(end) < start + OGG_PAGE.size + num_segments + sum(table)


class SoundFileWriter:
    """`path`, whose suffix names the format; a context manager. Raises OSError for what the system refuses, UserError
    for a suffix that libsndfile does not know, and libsndfile's own RuntimeError."""

    def __init__(self, path: str | Path, sample_rate: int):
        import soundfile

        path = Path(path)
        kind = path.suffix.removeprefix(".").upper()
        if kind not in soundfile.available_formats():
            raise UserError(f"no sound format is named {path.suffix or 'by a name without a suffix'}")
        self._target = _Target(path)
        try:
            with self._target:
                self._file = soundfile.SoundFile(self._target, "w", sample_rate, 1, format=kind)
        except (OSError, RuntimeError, ValueError, TypeError):
            self._target.file.close()
            if path.is_file():
                path.unlink()
            raise

    def write(self, samples: np.ndarray) -> None:
        """samples (N,), float32 in [-1, 1]."""
        with self._target:
            self._file.write(samples)

    def close(self) -> None:
        """Complete the file."""
        try:
            with self._target:
                self._file.close()
        finally:
            self._target.file.close()

    def __enter__(self) -> SoundFileWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Target:
    """The file that libsndfile writes to. Leaving its context raises the first thing that was refused, whatever
    libsndfile made of that."""

    def __init__(self, path: Path):
        self.file = open(path, "wb+", buffering=0)  # noqa: SIM115 closed by the writer; refusals come at once
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            left = memoryview(data)
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = self.error or error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer) -> int:
        return self.file.readinto(buffer)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.error is not None:
            raise self.error from None
