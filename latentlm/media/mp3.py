"""Detects MP3 files that are cut off: compares the number of frames with the one that the first frame may declare.

Place in the flow: below `sound_end.py`. An MP3 is a sequence of frames, each with a header that gives its length.
Encoders put a first frame without sound in front, with a tag (Xing, Info or VBRI) that holds the number of frames.
Without it only an incomplete last frame shows that a file was cut.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Samples per second by the header's bits of version: MPEG 1, 2 and 2.5."""
MPEG_1 = 3
KILOBITS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits per second by (MPEG 1 or later, layer) and the header's index of the bit rate, from 1."""
HAS_FRAMES, HAS_BYTES = 1, 2
"""Flags of a Xing tag: which fields follow."""


@dataclass(frozen=True)
class Frame:
    """A frame's kind (version, layer and sampling rate, the same in all frames of a file) and length in bytes."""

    kind: tuple[int, int, int]
    mono: bool
    length: int


def mp3_is_cut_off(data: bytes) -> bool:
    """Whether frames are missing at the end of an MP3 file. False if that cannot be known."""
    start = _first_frame(data)
    if start is None:
        return False
    num_frames, is_partial = _count_frames(data, start)
    declared, num_bytes = _declared(data, start)
    if is_partial:
        return True
    if declared is None:
        return False
    missing = declared - (num_frames - 1)  # the tag's own frame is not counted, except by some encoders
    return missing > 1 or (missing == 1 and start + num_bytes > len(data))


def _frame(data: bytes, position: int) -> Frame | None:
    """The frame whose header stands at `position`; None where there is none, and for a free bit rate."""
    header = data[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_index, bits, padding = header[2] >> 2 & 3, header[2] >> 4, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate_index == 3 or bits in (0, 15):
        return None
    rate = RATES[version][rate_index]
    bit_rate = 1000 * KILOBITS[version == MPEG_1, layer][bits - 1]
    if layer == 1:
        length = (12 * bit_rate // rate + padding) * 4
    else:
        length = (72 if layer == 3 and version != MPEG_1 else 144) * bit_rate // rate + padding
    return Frame((version, layer, rate), header[3] >> 6 == 3, length)


def _first_frame(data: bytes) -> int | None:
    """The position of the first frame, behind ID3v2 tags: a header that another one of its kind follows."""
    position = 0
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        size = sum(byte << 7 * place for place, byte in enumerate(reversed(data[position + 6 : position + 10])))
        position += 10 + size + (10 if data[position + 5] & 0x10 else 0)
    return _next_frame(data, position, None)


def _next_frame(data: bytes, position: int, kind: tuple[int, int, int] | None) -> int | None:
    """The position, from `position` on, of a frame (of `kind`) that another one of its kind follows."""
    while (position := data.find(b"\xff", position)) >= 0:
        frame = _frame(data, position)
        if frame is not None and kind in (None, frame.kind):
            following = _frame(data, position + frame.length)
            if following is not None and following.kind == frame.kind:
                return position
        position += 1
    return None


def _count_frames(data: bytes, position: int | None) -> tuple[int, bool]:
    """The number of complete frames from `position` on, and whether the last one is incomplete."""
    count, kind = 0, None
    while position is not None:
        frame = _frame(data, position)
        if frame is None or kind not in (None, frame.kind):
            if len(data) - position in (1, 2, 3) and data[position] == 0xFF:  # a part of a header
                return count, True
            position = _next_frame(data, position, kind)
            continue
        kind = frame.kind
        if position + frame.length > len(data):
            return count, True
        count += 1
        position += frame.length
    return count, False


def _declared(data: bytes, start: int) -> tuple[int | None, int]:
    """The number of frames, and of bytes from `start` on (0: not given), in the tag of the first frame."""
    frame = _frame(data, start)
    side = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}
    tag = start + 4 + side[frame.kind[0] == MPEG_1, frame.mono]
    if data[tag : tag + 4] in (b"Xing", b"Info") and len(data) >= tag + 16:
        flags, first, second = struct.unpack_from(">III", data, tag + 4)
        has_frames, has_bytes = bool(flags & HAS_FRAMES), bool(flags & HAS_BYTES)
        num_bytes = (second if has_frames else first) if has_bytes else 0
        return first if has_frames else None, num_bytes
    if data[start + 36 : start + 40] == b"VBRI" and len(data) >= start + 54:
        num_bytes, num_frames = struct.unpack_from(">II", data, start + 46)
        return num_frames, num_bytes
    return None, 0
