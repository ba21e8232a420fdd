"""Files in and out, and the one-line errors of those that are missing or broken."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from latentlm.errors import UserError
from latentlm.media.picture import image_to_rgb, load_image, save_image
from latentlm.media.sound import Audio, at_rate, check_voice, is_silent, load_audio, resample, save_audio


def tone(rate: int, seconds: float = 0.2) -> Audio:
    return Audio((torch.arange(round(rate * seconds)) * 2 * torch.pi * 440 / rate).sin() * 0.5, rate)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_round_trips_through_a_file(tmp_path, name):
    save_audio(tone(16000), tmp_path / name)
    loaded = load_audio(tmp_path / name)
    assert loaded.sample_rate == 16000
    assert loaded.samples.dtype == torch.float32
    torch.testing.assert_close(loaded.samples, tone(16000).samples, atol=1e-4, rtol=0)


def test_channels_are_mixed_and_rates_converted_and_both_are_said(tmp_path, notices):
    samples = tone(44100).samples.numpy()
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([samples, np.zeros_like(samples)], 1), 44100)
    loaded = load_audio(path, 16000)
    assert notices() == [f"{path}: 2 channels mixed down to one", f"{path}: 44,100 Hz resampled to 16,000 Hz"]
    assert loaded.name == str(path)
    assert loaded.sample_rate == 16000
    assert loaded.samples.shape == (3200,)
    torch.testing.assert_close(loaded.samples[200:-200], tone(16000).samples[200:-200] / 2, atol=5e-3, rtol=0)
    assert loaded.seconds == pytest.approx(0.2)


def test_resampling_to_the_same_rate_changes_nothing_and_says_nothing(notices):
    audio = tone(8000)
    assert resample(audio, 8000) is audio
    assert at_rate(audio, 8000) is audio
    assert notices() == []


def test_of_thousands_of_clips_the_first_three_are_named(notices):
    for number in range(2000):
        at_rate(Audio(torch.ones(10), 8000, f"{number}.wav"), 16000)
    what = "8,000 Hz resampled to 16,000 Hz"
    assert notices() == [f"0.wav: {what}", f"1.wav: {what}", f"2.wav: {what}; further files are not named"]
    at_rate(Audio(torch.ones(10), 44100, "2.wav"), 16000)
    assert notices() == ["2.wav: 44,100 Hz resampled to 16,000 Hz"]


def test_a_notice_reaches_stderr_of_any_program_once(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.ones((10, 2)) / 2, 8000)
    script = f"from latentlm.media.sound import load_audio; [load_audio({str(path)!r}) for _ in range(2)]"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count(f"Notice: {path}: 2 channels mixed down to one\n") == 1


def test_loud_sound_is_clipped_not_wrapped(tmp_path):
    save_audio(Audio(torch.tensor([2.0, -2.0, 0.5] * 10), 8000), tmp_path / "loud.wav")
    assert load_audio(tmp_path / "loud.wav").samples[:3].tolist() == pytest.approx([1.0, -1.0, 0.5], abs=1e-3)


def test_pictures_round_trip_and_stand_upright(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    save_image(image, tmp_path / "a.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), np.asarray(image))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == (4, 6)


@pytest.mark.parametrize(("load", "suffix"), [(load_image, "png"), (load_audio, "wav")])
def test_missing_and_corrupt_files_are_named_in_one_line(tmp_path, load, suffix):
    missing, corrupt, empty = (tmp_path / f"{name}.{suffix}" for name in ("missing", "corrupt", "empty"))
    corrupt.write_bytes(b"\x00\x01not media at all" * 50)
    empty.write_bytes(b"")
    for path in (missing, corrupt, empty, tmp_path):
        with pytest.raises(ValueError) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_truncated_files_are_errors(tmp_path):
    save_image(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), tmp_path / "a.png"
    )
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([0.0, value, 0.5], np.float32), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=f"^{path}: holds samples that are not finite"):
        load_audio(path)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_audio_of_samples_that_are_not_finite_is_refused(value):
    with pytest.raises(UserError, match=r"^a: holds samples that are not finite numbers$"):
        Audio(np.array([0.0, value, 0.5]), 8000, "a")


def test_samples_at_the_scale_of_integers_are_refused_with_their_peak(tmp_path):
    samples = tone(8000).samples.numpy() * 26180
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=rf"^{path}: its peak is 13,090; samples are floats in \[-1, 1\]"):
        load_audio(path)
    with pytest.raises(UserError, match=r"^its peak is 13,090"):
        Audio(torch.from_numpy(samples), 8000)
    assert Audio(samples.astype(np.int16), 8000).samples.abs().max() < 0.4
    assert Audio(np.array([3.9, -2.0]), 8000).samples.abs().max() > 3  # too loud, but sound


# ------------------------------------------------------------------ nothing to hear


def written(path: Path, *channels: np.ndarray, **options) -> Path:
    soundfile.write(path, np.stack(channels, 1), 8000, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"subtype": "FLOAT"}])
def test_channels_that_cancel_each_other_are_said(tmp_path, notices, options):
    wave = np.random.default_rng(0).normal(0, 0.1, 800)
    path = written(tmp_path / "anti.wav", wave, -wave, **options)
    audio = load_audio(path)
    assert notices() == [
        f"{path}: 2 channels mixed down to one",
        f"{path}: its channels cancel each other: mixed down to one they are silence, or nearly",
    ]
    assert is_silent(audio)
    with pytest.raises(UserError, match=rf"^{path}: the clip is silent"):
        check_voice(audio)


def test_silence_is_said_and_is_no_voice(tmp_path, notices):
    path = written(tmp_path / "a.wav", np.zeros(800))
    audio = load_audio(path)
    assert notices() == [f"{path}: silent: there is nothing to hear in it"]
    for silent in (audio, Audio(torch.full((80,), 1e-5), 8000), Audio(torch.zeros(0), 8000)):
        assert is_silent(silent)
        with pytest.raises(UserError, match="the clip is silent"):
            check_voice(silent)
    quiet = Audio(tone(8000).samples / 100, 8000)
    assert check_voice(quiet) is quiet


# ------------------------------------------------------------------ too short


def test_a_file_without_sound_or_with_less_than_a_millisecond_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    for samples, said in ((np.zeros(0), "holds no sound"), (np.ones(1) / 2, "holds 0.021 ms of sound, too short")):
        soundfile.write(path, samples, 48000)
        with pytest.raises(UserError, match=f"^{path}: {said}"):
            load_audio(path)


def test_sound_of_which_no_sample_is_left_is_refused_by_name():
    with pytest.raises(UserError, match=r"^one\.wav: 0\.021 ms of sound, no sample at 8,000 Hz$"):
        resample(Audio(torch.ones(1), 48000, "one.wav"), 8000)
    assert len(resample(Audio(torch.ones(48), 48000), 8000).samples) == 8


def test_a_header_that_asks_for_all_memory_is_one_line(tmp_path, monkeypatch):
    def read(*_, **__):
        raise MemoryError

    path = tmp_path / "a.mp3"
    path.write_bytes(b"x")
    monkeypatch.setattr(soundfile, "SoundFile", read)
    with pytest.raises(ValueError, match=rf"^{path}: not a readable sound file \(MemoryError\)$"):
        load_audio(path)


def test_pictures_of_floating_point_numbers_are_refused(tmp_path):
    picture = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    with pytest.raises(ValueError, match="floating-point numbers without a scale"):
        image_to_rgb(picture)
    picture.save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff: not a readable image \(its pixels are floating-point"):
        load_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("name", ["a.unknown", "none/a"])
def test_files_that_cannot_be_written_are_named(tmp_path, name):
    with pytest.raises(ValueError, match="cannot write the sound"):
        save_audio(tone(8000), tmp_path / f"{name}.what")
    with pytest.raises(ValueError, match="cannot write the image"):
        save_image(Image.new("RGB", (2, 2)), tmp_path / f"{name}.what")


def noise_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("save", "content", "name"), [(save_image, noise_picture(), "a.png"), (save_audio, tone(8000, 2.0), "a.flac")]
)
def test_a_full_disk_leaves_the_file_that_was_there_or_none(tmp_path, full_disk, save, content, name):
    path = tmp_path / name
    for before in (None, b"what was there"):
        if before:
            path.write_bytes(before)
        with full_disk(), pytest.raises(ValueError, match=f"{path}: cannot write"):
            save(content, path)
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([(name, before)] if before else [])


def test_what_is_no_plain_file_is_written_in_place_and_a_link_stays(tmp_path):
    (tmp_path / "full.png").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"full\.png: cannot write the image \(No space left on device\)"):
        save_image(noise_picture(), tmp_path / "full.png")
    (tmp_path / "there.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("there.png")
    save_image(noise_picture(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert load_image(tmp_path / "there.png").size == (64, 64)


def test_an_audio_shows_its_length_not_its_samples():
    assert repr(Audio(np.zeros(8000), 16000)) == "<Audio: 0.50 s at 16,000 Hz>"
    assert repr(Audio(np.zeros(8000), 16000, "a.wav")) == "<Audio: a.wav: 0.50 s at 16,000 Hz>"
