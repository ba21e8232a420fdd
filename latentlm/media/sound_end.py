"""Detects sound files that are cut off: compares the length that the header declares with the size of the file.

Place in the flow: below `sound_file.py`. libsndfile reads what is left of a cut file as if it were all of it.
Each reader gives the byte at which the samples should end, or None where the file does not declare it.
Formats without a declared length (PAF, PVF, IRCAM, SD2, raw) and those of other programs (MAT4, MAT5, XI) are not
checked. Files of FLAC, HTK and SDS that are cut off are refused by libsndfile itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from io import SEEK_END
from typing import IO

from .mp3 import mp3_is_cut_off

OPEN_END = 0x7FFF0000
"""A 32-bit length from here on means that the writer did not know it (a pipe)."""
CHUNK_HEADER = 8
"""Some writers count a chunk's own header in its length: samples that are 8 bytes short are complete."""
OGG_PAGE = struct.Struct("<4sBBqIIIB")
LAST_PAGE = 4
"""Flag of the page that ends an Ogg stream."""
LARGEST_PAGE = OGG_PAGE.size + 255 + 255 * 255
W64_HEADER = 24
"""Bytes of the name (16) and length (8) of a chunk of Sony Wave64, which its length includes."""

DeclaredEnd = Callable[[IO[bytes], int], int | None]


def is_cut_off(kind: str, file: IO[bytes]) -> bool:
    """Whether the end of `file`, of libsndfile's format `kind`, is missing. False if no length is declared."""
    size = file.seek(0, SEEK_END)
    file.seek(0)
    if kind == "MP3":
        return mp3_is_cut_off(file.read())
    if kind == "OGG":
        return _ogg_is_cut_off(file, size)
    end = DECLARED_ENDS[kind](file, size) if kind in DECLARED_ENDS else None
    return end is not None and end > size and end - size != CHUNK_HEADER


def _chunks(file: IO[bytes], layout: str) -> Iterator[tuple[bytes, int]]:
    """(name, length) of each chunk from here on, with the file at its content; `layout` of the two: "<4sI"."""
    header = struct.Struct(layout)
    while len(head := file.read(header.size)) == header.size:
        name, length = header.unpack(head)
        start = file.tell()
        yield name, length
        file.seek(start + length + length % 2)


def _wav_end(file: IO[bytes], size: int) -> int | None:
    """RIFF: the end of its "data" chunk; None (complete) if the RIFF header gives the length of the file itself."""
    _, whole = struct.unpack("<4sI", file.read(8))
    file.seek(12)
    for name, length in _chunks(file, "<4sI"):
        if name == b"data":
            is_whole = whole + 8 == size or length >= OPEN_END
            return None if is_whole else file.tell() + length
    return None


def _rf64_end(file: IO[bytes], size: int) -> int | None:
    """RF64: as WAV, with the 64-bit length of the data in a chunk "ds64"."""
    file.seek(12)
    long = None
    for name, length in _chunks(file, "<4sI"):
        if name == b"ds64":
            _, long = struct.unpack("<QQ", file.read(16))
        if name == b"data":
            start = file.tell()
            return start + (length if length < OPEN_END else long) if long or length < OPEN_END else None
    return None


def _w64_end(file: IO[bytes], size: int) -> int | None:
    """Wave64: chunks with names of 16 bytes and lengths of 64 bits, each on a multiple of 8 bytes."""
    position = W64_HEADER + 16
    while position + W64_HEADER <= size:
        file.seek(position)
        name, length = struct.unpack("<16sQ", file.read(W64_HEADER))
        if name.startswith(b"data"):
            return position + length
        position += max(W64_HEADER, -(-length // 8) * 8)
    return None


def _iff_end(data: bytes) -> DeclaredEnd:
    """AIFF and 8SVX: the big-endian chunk called `data` holds the samples."""

    def end(file: IO[bytes], size: int) -> int | None:
        file.seek(12)
        for name, length in _chunks(file, ">4sI"):
            if name == data:
                return file.tell() + length if length < OPEN_END else None
        return None

    return end


def _caf_end(file: IO[bytes], size: int) -> int | None:
    """Core Audio: chunks with lengths of 64 bits; that of the data is -1 where the writer did not know it."""
    position = 8
    while position + 12 <= size:
        file.seek(position)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"data":
            return position + 12 + length if length >= 0 else None
        position += 12 + max(length, 0)
    return None


def _au_end(file: IO[bytes], size: int) -> int | None:
    """AU: offset and length of the samples follow the magic, in either order of bytes."""
    head = file.read(12)
    _, start, length = struct.unpack("<4sII" if head.startswith(b"dns.") else ">4sII", head)
    return start + length if length < OPEN_END else None


def _nist_end(file: IO[bytes], size: int) -> int | None:
    """NIST SPHERE: a text header of its own length, with lines such as `sample_count -i 16000`."""
    text = file.read(1024).decode("latin-1").split("\n")
    fields = {words[0]: words[2] for line in text if len(words := line.split()) == 3}
    counts = [fields.get(name, "") for name in ("sample_count", "channel_count", "sample_n_bytes")]
    if not all(count.isdigit() for count in (text[1].strip(), *counts)):
        return None
    num_samples, num_channels, width = map(int, counts)
    return int(text[1]) + num_samples * num_channels * width


def _voc_end(file: IO[bytes], size: int) -> int | None:
    """Creative VOC: blocks of a type (1 byte) and a length (3 bytes) up to one of type 0."""
    file.seek(20)
    (position,) = struct.unpack("<H", file.read(2))
    while position + 4 <= size:
        file.seek(position)
        block = file.read(4)
        if block[0] == 0:
            return position
        position += 4 + int.from_bytes(block[1:], "little")
    return position


def _avr_end(file: IO[bytes], size: int) -> int | None:
    """Audio Visual Research: the number of frames stands in a header of 128 bytes."""
    stereo, width = struct.unpack(">12xhh", file.read(16))
    (num_frames,) = struct.unpack(">10xI", file.read(14))
    return 128 + num_frames * (2 if stereo else 1) * width // 8


def _mpc_end(file: IO[bytes], size: int) -> int | None:
    """Akai MPC 2000: 16-bit frames, counted in a header of 42 bytes."""
    stereo, num_frames = struct.unpack("<21x?4xI", file.read(30))
    return 42 + 2 * num_frames * (2 if stereo else 1)


def _wve_end(file: IO[bytes], size: int) -> int | None:
    """Psion WVE: one byte per sample behind a header of 32 bytes."""
    (num_samples,) = struct.unpack(">18xI", file.read(22))
    return 32 + num_samples


DECLARED_ENDS: dict[str, DeclaredEnd] = {
    "WAV": _wav_end,
    "WAVEX": _wav_end,
    "RF64": _rf64_end,
    "W64": _w64_end,
    "AIFF": _iff_end(b"SSND"),
    "SVX": _iff_end(b"BODY"),
    "CAF": _caf_end,
    "AU": _au_end,
    "NIST": _nist_end,
    "VOC": _voc_end,
    "AVR": _avr_end,
    "MPC2K": _mpc_end,
    "WVE": _wve_end,
}
"""By libsndfile's name of the format."""


def _ogg_is_cut_off(file: IO[bytes], size: int) -> bool:
    """Whether the last page does not end its stream, or is incomplete."""
    file.seek(max(0, size - 2 * LARGEST_PAGE))
    end = file.read()
    start = end.rfind(b"OggS")
    if start < 0 or len(end) < start + OGG_PAGE.size:
        return True
    *_, flags, _, _, _, _, num_segments = OGG_PAGE.unpack_from(end, start)
    table = end[start + OGG_PAGE.size :][:num_segments]
    return not flags & LAST_PAGE or len(end) < start + OGG_PAGE.size + num_segments + sum(table)
