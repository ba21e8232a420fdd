"""Sound files in any format of libsndfile, complete or refused.

Place in the flow: below `sound.py` and `recording.py`. libsndfile reads what is left of a file that was cut off as if
it were all, and reports a full disk for some formats only. Both are errors here: a clip that is
cut off no longer matches its text.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import UserError
from .sound_end import is_cut_off


def read_sound(source: Path | bytes) -> tuple[np.ndarray, int]:
    """All samples (N, channels) float32 and their rate, of a file or of a file's bytes.

    Raises UserError for a file that is cut off or broken in the middle; for other faults RuntimeError or TypeError,
    as libsndfile does.
    """
    import soundfile

    with soundfile.SoundFile(str(source) if isinstance(source, Path) else BytesIO(source)) as file:
        with open(source, "rb") if isinstance(source, Path) else BytesIO(source) as data:
            if is_cut_off(file.format, data):
                raise UserError("cut off: its end is missing")
        samples = file.read(dtype="float32", always_2d=True)
        if len(samples) < file.frames and file.format != "MP3":  # libsndfile may have guessed the length of an MP3
            raise UserError(f"{len(samples)} of {file.frames} samples can be read")
        return samples, file.samplerate


class SoundFileWriter:
    """Writes mono sound to `path`, whose suffix names the format. A context manager: leaving it completes the file.

    Raises OSError where the system refuses a write, UserError for a suffix that libsndfile does not know, and
    RuntimeError for what libsndfile itself refuses.
    """

    def __init__(self, path: str | Path, sample_rate: int):
        import soundfile

        path = Path(path)
        kind = path.suffix.removeprefix(".").upper()
        if kind not in soundfile.available_formats():
            raise UserError(f"unknown sound format {path.suffix!r}" if path.suffix else "the name has no suffix")
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
    """The file that libsndfile writes to.

    A context manager: leaving it raises the first error of the system since then, which libsndfile may have ignored.
    """

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
