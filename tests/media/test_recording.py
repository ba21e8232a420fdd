"""A sound file that grows: valid after every piece and after a kill, equal to one written at once, never empty."""

import errno
import os
import signal
import subprocess
import sys
import wave
from itertools import pairwise

import pytest
import soundfile
import torch

from latentlm.media.recording import Recording
from latentlm.media.sound import Audio, load_audio, save_audio


def noise(num_samples: int) -> Audio:
    return Audio(torch.randn(num_samples, generator=torch.Generator().manual_seed(0)) * 0.5, 8000)


def cut(audio: Audio, *ends: int) -> list[Audio]:
    """Pieces that end at `ends`."""
    return [Audio(audio.samples[start:end], audio.sample_rate) for start, end in pairwise((0, *ends))]


def test_a_wav_is_valid_after_every_piece(tmp_path):
    path, ends = tmp_path / "a.wav", (100, 101, 300)
    with Recording(path) as recording:
        for piece, end in zip(cut(noise(300), *ends), ends, strict=True):
            recording.append(piece)
            with wave.open(str(path)) as file:
                assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (end, 8000, 1)
            assert len(soundfile.read(path)[0]) == end
    assert recording.seconds == 300 / 8000


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_pieces_give_the_file_that_the_whole_gives(tmp_path, suffix):
    sound = Audio(noise(1000).samples * 3, 16000)  # some are clipped
    with Recording(tmp_path / f"pieces{suffix}") as recording:
        for piece in cut(sound, 300, 301, 1000):
            recording.append(piece)
    save_audio(sound, tmp_path / f"whole{suffix}")
    pieces, whole = (load_audio(tmp_path / f"{name}{suffix}") for name in ("pieces", "whole"))
    assert pieces.sample_rate == whole.sample_rate
    torch.testing.assert_close(pieces.samples, whole.samples, atol=2**-15, rtol=0)  # libsndfile rounds down


def test_nothing_said_is_no_file(tmp_path):
    with Recording(tmp_path / "a.wav") as recording:
        recording.append(noise(0))
    assert recording.seconds == 0
    assert list(tmp_path.iterdir()) == []


def test_a_killed_program_leaves_what_it_appended(tmp_path):
    program = (
        "import sys, time, torch\n"
        "from latentlm.media.recording import Recording\n"
        "from latentlm.media.sound import Audio\n"
        "recording = Recording(sys.argv[1])\n"
        "recording.append(Audio(torch.full((400,), 0.25), 8000))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "a.wav"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert load_audio(path).samples.tolist() == pytest.approx([0.25] * 400, abs=1e-4)


def test_a_wav_beyond_four_gibibytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("latentlm.media.recording.LARGEST", 100)
    with Recording(tmp_path / "a.wav") as recording:
        recording.append(noise(50))
        with pytest.raises(ValueError, match=r"a\.wav: cannot write the sound \(a WAV file holds at most 4 GiB"):
            recording.append(noise(1))
    assert len(load_audio(tmp_path / "a.wav").samples) == 50


def test_a_format_that_is_unknown_is_named(tmp_path):
    with Recording(tmp_path / "a.xyz") as recording, pytest.raises(ValueError, match=r"a\.xyz: cannot write"):
        recording.append(noise(5))


def test_a_full_disk_keeps_what_was_appended_before(tmp_path, full_disk):
    path = tmp_path / "a.wav"
    with Recording(path) as recording:
        recording.append(noise(300))
        with full_disk(), pytest.raises(ValueError, match=r"a\.wav: cannot write the sound \(File too large\)"):
            recording.append(noise(1000))
    with wave.open(str(path)) as file:
        assert file.getnframes() == 300


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".aiff"])
def test_a_full_disk_is_said_of_every_format(tmp_path, full_disk, suffix):
    path = tmp_path / f"a{suffix}"
    message = f"a\\{suffix}: cannot write the sound \\(File too large\\)"
    with full_disk():
        with pytest.raises(ValueError, match=message), Recording(path) as recording:
            recording.append(noise(100_000))
        path.unlink()
        with pytest.raises(ValueError, match=message):
            save_audio(noise(100_000), path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_from_the_start_leaves_no_empty_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latentlm.media.recording._WavFile._put", refuse)
    with Recording(tmp_path / "a.wav") as recording, pytest.raises(ValueError, match="No space left on device"):
        recording.append(noise(5))
    assert list(tmp_path.iterdir()) == []
