"""A sound file that is cut off or broken is refused, whatever libsndfile makes of it; one that is whole is read."""

import struct

import numpy as np
import pytest
import soundfile

from latentlm.media.sound import load_audio
from latentlm.media.sound_end import OPEN_END

SAMPLES = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)


def written(folder, suffix: str, **options):
    path = folder / f"a.{suffix}"
    soundfile.write(path, SAMPLES, 16_000, **options)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff", "mp3", "au"])
def test_a_whole_file_is_read(tmp_path, suffix):
    assert len(load_audio(written(tmp_path, suffix)).samples) >= len(SAMPLES)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix, share):
    path = written(tmp_path, suffix)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: not a readable sound file"):
        load_audio(path)


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


def test_what_follows_the_samples_does_not_matter(tmp_path):
    path = written(tmp_path, "wav", subtype="FLOAT")
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    assert len(load_audio(path).samples) == len(SAMPLES)
