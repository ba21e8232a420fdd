import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from latentlm.media.sound import Audio, save_audio
from latentlm.training.logs import TrainLog, read_log, truncate


def record(step, seconds=1.0):
    losses = {"loss": 1.0, "losses": {"text": 1.0}}
    return {"step": step, **losses, "learning_rate": 1e-3, "tokens_per_second": 5.0, "seconds": seconds}


def test_resume_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record(step)) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4, 5]
    truncate(path, 3)
    with TrainLog(tmp_path, first_step=3, steps=9) as log:
        log.write(record(4))
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4]


def test_a_disabled_log_writes_nothing(tmp_path):
    with TrainLog(tmp_path / "none", first_step=0, steps=9, enabled=False) as log:
        log.write(record(1))
        log.say("words")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_that_names_the_log(tmp_path):
    path = tmp_path / "train.jsonl"
    path.symlink_to("/dev/full")
    log = TrainLog(tmp_path, first_step=0, steps=9)
    with pytest.raises(OSError, match="No space left on device") as full:
        log.write(record(1))
    assert full.value.filename == str(path)
    with pytest.raises(OSError, match="No space left on device") as full:
        log.__exit__(None, None, None)  # what could not be written is tried once more
    assert full.value.filename == str(path)


def test_plain_lines_where_stderr_is_no_terminal(tmp_path, capsys):
    with TrainLog(tmp_path, first_step=0, steps=9) as log:
        log.write(record(1))
        log.write(record(2))
        log.write(record(3), last=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/9", "3/9"]
    assert "text 1  lr 1.0e-03  5 tokens/s" in lines[0]


def test_progress_bar_where_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with TrainLog(tmp_path, first_step=0, steps=9) as log:
        log.write(record(9), last=True)
        log.say("a line [with brackets]")
    assert "9/9" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 60])
def test_a_narrow_terminal_cuts_no_figure(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    losses = {"end": 0.012345, "image": 1.25, "speech": 0.98765, "text": 123.456}
    with TrainLog(tmp_path, first_step=0, steps=20_000, minutes=17.0) as log:
        log.write(record(440, seconds=126.0) | {"losses": losses, "tokens_per_second": 12345.6}, last=True)
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    bar = next(line for line in lines if "440" in line)
    if columns == 80:
        assert "━" in bar
        assert "step 440 (2.1 of 17.0 min)" in bar
        assert bar.endswith("lr 1.0e-03  12,346 tokens/s")
    shown = " ".join(lines[lines.index(bar) + 1 :])
    assert "end 0.01235  image 1.25  speech 0.9877  text 123.5" in shown


def test_what_a_tokenizer_counts_are_examples(tmp_path, capsys):
    counted = record(9) | {"examples_per_second": 640.0}
    del counted["tokens_per_second"]
    with TrainLog(tmp_path, first_step=0, steps=9, unit="examples") as log:
        log.write(counted, last=True)
    assert capsys.readouterr().err.endswith("640 examples/s\n")


def test_where_the_clock_ends_the_run_lines_follow_it(tmp_path, capsys):
    with TrainLog(tmp_path, first_step=0, steps=20_000, minutes=17.0) as log:
        log.write(record(440, seconds=126.0))
        log.write(record(19_999, seconds=127.0), last=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 440 (2.1 of 17.0 min)  text")
    assert lines[1].startswith("step 19999/20000  text")


def test_where_the_clock_ends_the_run_the_bar_follows_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with TrainLog(tmp_path, first_step=220, first_seconds=255.0, steps=20_000, minutes=17.0) as log:
        bar, task = log._bar
        assert bar.tasks[task].percentage == pytest.approx(25)
        log.write(record(880, seconds=1020.0), last=True)
        assert bar.tasks[task].finished
    assert "step 880 (17.0 of 17.0 min)" in capsys.readouterr().err


def test_tensorboard_missing_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        TrainLog(tmp_path, first_step=0, steps=9, tensorboard=True)


def test_tensorboard_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    with TrainLog(tmp_path, first_step=0, steps=9, tensorboard=True) as log:
        log.write(record(1))
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_tensorboard_shows_the_samples_of_a_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (6, 4), "red").save(samples / "step-00000004-image.png")
    Image.new("RGB", (6, 4), "blue").save(samples / "step-00000002-image.png")
    save_audio(Audio(torch.linspace(-0.5, 0.5, 80), 8000), samples / "step-00000004-speech-1.wav")
    (samples / "step-00000004.json").write_text('[{"answer": "red apple"}]')
    with TrainLog(tmp_path, first_step=0, steps=9, tensorboard=True) as log:
        log.show_samples(4, samples)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    (picture,) = events.Images("samples/image")
    assert (picture.step, picture.width, picture.height) == (4, 6, 4)
    (clip,) = events.Audio("samples/speech-1")
    assert (clip.step, clip.sample_rate) == (4, 8000)
    assert "red apple" in str(events.Tensors("samples/answers/text_summary")[0].tensor_proto)
