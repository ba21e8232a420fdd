"""A sound file that is cut off or broken is refused, whatever libsndfile makes of it; one that is whole is read."""

import struct

import numpy as np
import pytest
import soundfile

from latentlm.errors import UserError
from latentlm.media.mp3 import mp3_is_cut_off
from latentlm.media.sound import decode_audio, load_audio
from latentlm.media.sound_end import OPEN_END

SAMPLES = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)


def written(folder, suffix: str, **options):
    path = folder / f"a.{suffix}"
    soundfile.write(path, SAMPLES, 16_000, **options)
    return path


FORMATS = (
    *("wav", "wavex", "rf64", "w64", "aiff", "au", "caf", "flac", "ogg"),
    *("mp3", "svx", "nist", "voc", "avr", "mpc2k", "wve"),
)
"""Of libsndfile, those that declare a length."""


def in_format(folder, name: str):
    path = folder / f"a.{name}"
    subtype = {"wve": None, "mp3": None, "ogg": None}.get(name, "PCM_16")
    soundfile.write(path, SAMPLES, 8_000 if name == "wve" else 16_000, format=name.upper(), subtype=subtype)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_read(tmp_path, name):
    assert len(load_audio(in_format(tmp_path, name)).samples) >= len(SAMPLES)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name, share):
    path = in_format(tmp_path, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"a\.{name}: (not a readable sound file|holds no sound)"):
        load_audio(path)


@pytest.mark.parametrize("name", ["wav", "aiff", "au", "mp3"])
def test_the_bytes_of_a_file_are_checked_as_the_file_is(tmp_path, name):
    data = in_format(tmp_path, name).read_bytes()
    assert len(decode_audio(data).samples) >= len(SAMPLES)
    with pytest.raises(UserError, match=r"^row 3: not a readable sound file \(cut off: its end is missing\)"):
        decode_audio(data[: len(data) // 2], "row 3")


def test_an_ogg_that_ends_at_a_page_but_too_early_is_refused(tmp_path):
    path = written(tmp_path, "ogg")
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"OggS")])
    with pytest.raises(ValueError, match="cut off: its end is missing"):
        load_audio(path)


def test_an_ogg_that_is_broken_in_the_middle_is_refused(tmp_path):
    path = written(tmp_path, "ogg")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"not a readable sound file \(\d+ of 48000 samples can be read\)"):
        load_audio(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, OPEN_END])
def test_a_wav_that_was_piped_does_not_know_its_size_and_is_read(tmp_path, size):
    path = written(tmp_path, "wav")
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    assert len(load_audio(path).samples) == len(SAMPLES)


@pytest.mark.parametrize("fields", ["data", "RIFF data"])
def test_a_wav_that_counts_a_header_of_8_bytes_with_its_samples_is_read(tmp_path, fields):
    path = written(tmp_path, "wav")
    data = bytearray(path.read_bytes())
    for field in fields.split():
        place = data.index(field.encode()) + 4
        data[place : place + 4] = struct.pack("<I", struct.unpack_from("<I", data, place)[0] + 8)
    path.write_bytes(data)
    assert len(load_audio(path).samples) == len(SAMPLES)


def test_a_wav_without_its_last_sample_is_refused(tmp_path):
    path = written(tmp_path, "wav")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="cut off: its end is missing"):
        load_audio(path)


# ------------------------------------------------------------------ MP3


def without_tag(data: bytes) -> bytes:
    """An MP3 without its first frame, which holds the number of frames."""
    return data[data.index(b"\xff\xf3", 100) :]


def with_vbri(data: bytes, num_frames: int) -> bytes:
    """An MP3 whose first frame has a VBRI tag in the place of its Info tag."""
    length = len(data) - len(without_tag(data))
    tag = struct.pack(">4sHHHII", b"VBRI", 1, 0, 0, len(data), num_frames)
    return (data[:4] + bytes(32) + tag).ljust(length, b"\0") + data[length:]


def test_an_mp3_that_declares_no_length_is_refused_where_its_last_frame_is_not_all_there(tmp_path):
    data = without_tag(in_format(tmp_path, "mp3").read_bytes())
    assert not mp3_is_cut_off(data)
    for missing in (1, 40, 143):  # frames have 144 bytes
        assert mp3_is_cut_off(data[:-missing])


def test_the_frames_of_an_mp3_are_counted_against_either_kind_of_tag(tmp_path):
    data = in_format(tmp_path, "mp3").read_bytes()
    frame = len(data) - len(without_tag(data))
    num_frames = struct.unpack_from(">I", data, data.index(b"Xing" if b"Xing" in data else b"Info") + 8)[0]
    for whole in (data, with_vbri(data, num_frames)):
        assert not mp3_is_cut_off(whole)
        assert mp3_is_cut_off(whole[: -len(data) // 3])
    ends = [position for position in range(frame, len(data)) if mp3_is_cut_off(data[:position])]
    assert ends == list(range(frame + 4, len(data)))


def test_tags_around_an_mp3_do_not_matter(tmp_path):
    data = in_format(tmp_path, "mp3").read_bytes()
    front = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + b"\xff\xfb\x90" + bytes(253)
    for whole in (front + data, data + b"TAG" + b"a" * 125, data + bytes(1000)):
        assert not mp3_is_cut_off(whole)
        assert mp3_is_cut_off(whole[: len(front) + len(data) // 2])


def test_what_follows_the_samples_does_not_matter(tmp_path):
    path = written(tmp_path, "wav", subtype="FLOAT")
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    assert len(load_audio(path).samples) == len(SAMPLES)
