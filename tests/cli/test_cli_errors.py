"""Bad input gets one line on stderr that names the file, key or value, exit code 2, and nothing else."""

import errno
import json
import os
import subprocess
import sys

import pytest

from latentlm import cli
from latentlm.checkpoint import write_config
from latentlm.commands.prompt_words import read_part
from latentlm.weights import save_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, model, tokenizers):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_config(folder, model, tokenizers)
    save_weights(folder / "model.safetensors", model.state_dict())
    return folder


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; its one line, after checking that it is one line with exit code 2."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert ended.value.code == 2
        assert captured.out == ""
        assert captured.err.startswith("latentlm: ")
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generat"], "Did you mean"),
        (["train", "qqq"], "no recipe 'qqq' (known: demo, "),
        (["train", "dem"], "no recipe 'dem', did you mean 'demo'?"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
        (["train", "demo", "--set", "training.stepz=5"], "unknown key 'training.stepz', did you mean 'steps'?"),
        (["train", "demo", "--set", "training.steps=many"], "training.steps: "),
        (["train", "demo", "--set", "training.steps"], "--set 'training.steps': write KEY=VALUE"),
        (["train", "demo", "--set", "training.steps=[1"], "--set 'training.steps=[1': the value is not YAML"),
        (["train", "demo", "--processes", "0"], "--processes must be at least 1, got 0"),
        (["demo", "--minutes", "-1"], "--minutes must be above 0, got -1"),
        (["generate", "tiny", "x", "--to", "imag", "--out", "x.png"], '"imag" for --to'),
        (["generate", "tiny", "x", "--to", "image"], "--to image needs a file to write: --out answer.png"),
        (["generate", "tiny", "x", "--to", "speech", "--out", "x.png"], "--out x.png: a result of --to speech ends in"),
        (["generate", "tiny", "nowhere.png", "--to", "text"], "nowhere.png: no such file"),
        (["generate", "tiny", "nowhere.wav", "--to", "text"], "nowhere.wav: no such file"),
        (["generate", "tiny", "x", "--to", "speech", "--out", "x.wav", "--voice", "me.wav"], "me.wav: no such file"),
        (["generate", "tiny", "x", "--to", "text", "--max-seconds", "0"], "--max-seconds must be above 0"),
        (["generate", "tiny", "x", "--to", "speech", "--out", "x.wav", "--max-seconds", "inf"], "finite, got inf"),
        (["generate", "tiny", "x", "--to", "speech", "--out", "x.wav", "--max-seconds", "nan"], "finite, got nan"),
        (["generate", "tiny", "x", "--to", "text", "--max-seconds", "1"], "--max-seconds has no meaning for --to text"),
        (["generate", "tiny", "x", "--to", "text", "--voice", "a.wav"], "--voice has no meaning for --to text"),
        (["generate", "tiny", "x", "--to", "text", "--steps", "5"], "--steps has no meaning for --to text"),
        (["generate", "tiny", "x", "--to", "text", "--solver", "ddim"], "--solver has no meaning for --to text"),
        (["generate", "tiny", "x", "--to", "text", "--num", "0"], "--num must be at least 1, got 0"),
        (["generate", "tiny", "x", "--to", "auto"], "--to auto needs a folder to write: --out answer"),
        (["generate", "tiny", "x", "--to", "auto", "--out", "x.png"], "--out x.png: a result of --to auto is a folder"),
        (["generate", "tiny", "x", "--to", "text", "--device", "gpu"], "unknown device 'gpu' (known: auto, cpu, cuda"),
        (["generate", "tiny", "x", "--to", "text", "--dtype", "fp8"], '"fp8" for --dtype'),
        (["evaluate", "tiny", "--out", "x.json", "--device", "gpu"], "unknown device 'gpu' (known: auto, cpu, cuda"),
        (["train", "demo", "--set", "data=[{a:", "b.jsonl}]"], "quote it: --set 'data=[{a: b.jsonl}]'"),
        (["train", "demo", "--set=data=[{a:", "b: 1, c}]"], "quote it: --set 'data=[{a: b: 1, c}]'"),
        (
            ["generate", "tiny", "-5 degrees", "--to", "text"],
            "begins with a dash comes last, after --: -- '-5 degrees'",
        ),
        (["generate", "tiny", "-cold", "--to", "text"], "begins with a dash comes last, after --: -- '-cold'"),
        (["generate", "tiny", "x", "--to", "text", "--num", "3"], "--num 3: at --temperature 0 all texts would be the"),
        (["generate", "tiny", "x", "--to", "text", "--out", "t.wav"], "--out t.wav: .wav is for speech; a result of"),
        (["generate", "tiny", "x", "--to", "text", "--out", "t.PNG"], "--out t.PNG: .png is for image; a result of"),
        (["generate", "tiny", "-", "/dev/stdin", "--to", "text"], "stdin can be read only once"),
        (["generate", "tiny", "x", "--to", "text", "--seed", "1.5"], "--seed"),
        (["generate", "tiny", "x", "--to", "text", "--threads", "0"], "threads must be at least 1, got 0"),
        (["generate", "", "x", "--to", "text"], "the name of the model is empty"),
        (["evaluate", "", "--out", "x.json"], "the name of the model is empty"),
        (["generate", "nowhere", "x", "--to", "text"], "no model 'nowhere'"),
        (["generate", "tiny", "x", "--to", "text", "--guidanc", "2"], "--guidanc"),
        (["evaluate", "nowhere", "--out", "x.json"], "no model 'nowhere'"),
        (["evaluate", "tiny", "--out", "x.txt"], "--out x.txt: a report ends in .json or .html"),
        (["generate", "tiny", "x", "--to", "text", "--max-latents", "3"], "--max-latents has no meaning for --to text"),
        (
            ["generate", "tiny", "x", "--to", "vectors", "--out", "x.npy", "--max-latents", "0"],
            "--max-latents must be at least 1, got 0",
        ),
        (
            ["generate", "tiny", "x", "--to", "auto", "--out", "x", "--max-latents", "3", "--max-seconds", "1"],
            "--max-seconds and --max-latents set the same limit",
        ),
        (
            ["evaluate", "tiny", "--out", "x.json", "--guidance", "digit=2"],
            "--guidance digit=2: no task 'digit', did you",
        ),
        (
            ["evaluate", "tiny", "--out", "x.json", "--guidance", "high"],
            "--guidance high: write a number from 0 on, or TASK=",
        ),
        (["evaluate", "tiny", "--out", "x.json", "--seed", "1" * 13], "--seed must have at most 12 digits, got 111"),
        (["evaluate", "tiny", "--out", "x.json", "--steps", "0"], "--steps must be at least 1, got 0"),
        (
            ["evaluate", "nowhere", "--out", "x.json", "--only", "digitz"],  # said before a model is looked for
            "unknown evaluation 'digitz', did you mean 'digits'?",
        ),
        (["data", "preview", "digitz"], "no data source 'digitz', did you mean 'digits'?"),
        (["data", "preview", "digits", "--num", "0"], "--num must be at least 1, got 0"),
        (["data", "validate", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_wrong_argument(refused, arguments, expected):
    assert expected in refused(*arguments)


@pytest.mark.parametrize("name", ["broken.png", "broken.wav"])
def test_a_corrupt_file_is_named(refused, tmp_path, name):
    (tmp_path / name).write_bytes(b"this is neither")
    assert f"{name}: not a readable" in refused("generate", "tiny", name, "--to", "text")


@pytest.mark.parametrize(
    ("to", "name", "value"),
    [
        ("image", "temperature", "1"),
        ("image", "voice", "a.wav"),
        ("image", "max-tokens", "5"),
        ("image", "max-seconds", "1"),
        ("speech", "max-tokens", "5"),
        ("image", "max-latents", "5"),
        ("vectors", "max-seconds", "1"),
        ("vectors", "max-tokens", "5"),
    ],
)
def test_an_option_that_a_result_does_not_depend_on(refused, to, name, value):
    out = {"image": "x.png", "speech": "x.wav", "vectors": "x.npy"}[to]
    line = refused("generate", "tiny", "x", "--to", to, "--out", out, f"--{name}", value)
    assert line == f"latentlm: --{name} has no meaning for --to {to}\n"


def test_a_report_into_a_folder_is_refused_before_the_work(refused, tmp_path):
    (tmp_path / "x.json").mkdir()
    assert "--out x.json: is a folder" in refused("evaluate", "nowhere", "--out", "x.json")


def test_a_seed_that_no_generator_takes(refused, checkpoint):
    line = refused("generate", checkpoint, "x", "--to", "text", "--seed", 10**30)
    assert "seed must be at least -2**63 and below 2**64, got 1000" in line


@pytest.mark.parametrize("name", ["picture.heic", "My clip.m4a", "notes.rst", "CLIP.WMA"])
def test_a_file_of_a_kind_that_is_not_read_is_no_prompt(refused, tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    line = refused("generate", "tiny", name, "--to", "text")
    assert f"{name}: files of this kind are not read, only .png, " in line


def test_a_file_without_an_extension_is_of_no_known_kind(refused, tmp_path):
    (tmp_path / "noext").write_bytes(b"\x89PNG")
    line = refused("generate", "tiny", "noext", "--to", "text")
    assert "noext: the name has no extension, so its kind is unknown (known: .png, " in line


@pytest.mark.parametrize("scale", ["-1", "nan", "inf"])
def test_a_guidance_below_0_or_without_end(refused, checkpoint, scale):
    line = refused("generate", checkpoint, "x", "--to", "image", "--out", "x.png", "--guidance", scale)
    assert f"guidance must be a number from 0 on, got {float(scale)}" in line
    assert "write a number from 0 on" in refused("evaluate", "tiny", "--out", "x.json", "--guidance", f"digits={scale}")


@pytest.mark.parametrize(
    "word",
    [*("talk.srt", "missing.md", "notes.PDF", "/dev/stdinn", "photos/apple", "./apple", "a.jsonl.gz", "nowhere.heic")],
)
def test_a_word_that_looks_like_a_file_and_is_none(refused, word):
    line = refused("generate", "tiny", word, "--to", "text")
    assert line == f"latentlm: {word}: no such file (if it is meant as words, put a space after it)\n"


def test_a_folder_is_no_prompt(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "photos/: is a folder; a prompt is made of files" in refused("generate", "tiny", "photos/", "--to", "text")
    assert read_part("photos", "image") == "photos"


def test_a_misspelt_option_is_not_taken_for_a_prompt(refused):
    line = refused("generate", "tiny", "x", "--to", "text", "--guidanc", "2")
    assert "after --" not in line


def test_a_missing_out_is_said_before_torch_is_loaded(tmp_path):
    code = "from latentlm import cli; import sys, atexit; atexit.register(lambda: print('torch' in sys.modules))"
    code += "; cli.main(['generate', 'tiny', 'x', '--to', 'image'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "latentlm: --to image needs a file to write: --out answer.png\n"
    assert done.stdout == "False\n"


def test_words_are_no_files(refused):
    for words in (
        "seven",
        "It is at 5.30",
        "St. Petersburg",
        "No. 7.heic or another",
        "word. " * 2000,
        "a.md ",
        "e.g.",
    ):
        assert read_part(words, "image") == words


def test_an_option_without_meaning_is_not_ignored(refused, checkpoint):
    line = refused("generate", checkpoint, "x", "--to", "text", "--guidance", "2")
    assert "guidance 2.0 has no meaning for text" in line


def test_an_empty_prompt(refused, checkpoint):
    assert "the prompt is empty" in refused("generate", checkpoint, " ", "--to", "text")


def test_a_prompt_past_the_context(refused, checkpoint):
    assert "positions, the context is" in refused("generate", checkpoint, "word " * 2000, "--to", "text")


def test_a_checkpoint_of_another_version(refused, tmp_path, model, tokenizers):
    write_config(tmp_path / "old", model, tokenizers)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    assert "format_version is 99" in refused("generate", "./old", "x", "--to", "text")


def test_a_checkpoint_with_missing_and_extra_weights(refused, tmp_path, model, tokenizers):
    weights = dict(model.state_dict())
    weights["stranger"] = weights.pop("text_head.weight")
    write_config(tmp_path / "other", model, tokenizers)
    save_weights(tmp_path / "other" / "model.safetensors", weights)
    line = refused("generate", "./other", "x", "--to", "text")
    assert "1 missing: text_head.weight; 1 extra: stranger" in line


def test_a_manifest_line_that_breaks_the_schema(refused, tmp_path):
    good, bad = {"segments": [{"text": "a"}]}, {"segments": [{"txt": "a"}]}
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    for command in ("validate", "preview"):
        line = refused("data", command, "mine.jsonl")
        assert "mine.jsonl:2: unknown key 'segments.0.txt', did you mean 'text'?" in line


def test_a_result_that_cannot_be_written(refused, tmp_path, checkpoint):
    (tmp_path / "taken.txt").mkdir()
    assert "taken.txt" in refused("generate", checkpoint, "x", "--to", "text", "--max-tokens", 2, "--out", "taken.txt")


def test_a_folder_that_holds_a_run_is_left_alone(refused, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("kind: latentlm\n")
    assert "run: already holds a run" in refused("train", "tiny_image", "--out", "run")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "kind: latentlm\n"


def test_a_process_that_failed_gives_its_exit_code(monkeypatch, capsys):
    from latentlm.training import run

    def fail(*_, **__):
        raise run.ProcessFailed(3)

    monkeypatch.setattr(run, "train", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "demo", "--processes", "2"])
    assert ended.value.code == 3
    assert capsys.readouterr().err == ""  # the process has said why


def test_a_run_that_has_to_stop_says_why(refused, monkeypatch):
    from latentlm.training import run
    from latentlm.training.checkpoint import CheckpointError
    from latentlm.training.trainer import NonFiniteLoss

    for error in (CheckpointError("checkpoints/3: not written: no space"), NonFiniteLoss("step 3: image is nan")):

        def stop(*_, error=error, **__):
            raise error

        monkeypatch.setattr(run, "train", stop)
        assert refused("train", "demo") == f"latentlm: {error}\n"


def test_a_file_system_error_names_its_file(refused, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/demo/recipe.yaml")

    monkeypatch.setattr("latentlm.training.run.train", full)
    assert refused("train", "demo") == "latentlm: runs/demo/recipe.yaml: No space left on device\n"


def test_a_full_disk_without_the_name_of_a_file_is_one_line(refused, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("latentlm.training.run.train", full)
    assert refused("train", "demo") == "latentlm: No space left on device\n"


def test_output_that_nobody_takes_ends_without_a_traceback():
    """A pipe whose reader has gone, and a disk that is full."""
    reader, gone = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for stdout, code, said in ((gone, 141, b""), (full, 2, b"latentlm: No space left on device\n")):
        command = [sys.executable, "-m", "latentlm", "data", "list"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE)
        os.close(stdout)
        assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("bug", [RuntimeError, ValueError, KeyError, OSError])
def test_an_unexpected_error_keeps_its_traceback(monkeypatch, bug):
    def crash(*_, **__):
        raise bug("a bug")

    monkeypatch.setattr("latentlm.training.run.train", crash)
    with pytest.raises(bug, match="a bug"):
        cli.main(["train", "demo"])


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentlm.training.run.train", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "demo"])
    assert ended.value.code == 130
