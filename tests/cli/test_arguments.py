"""Arguments as shells pass them: home folders, stdin, pipes, and what is meant by a name."""

import io
import os
import threading
from pathlib import Path

import pytest
import yaml

from latentlm import cli
from latentlm.checkpoint import resolve
from latentlm.commands.arguments import expanded, prepared
from latentlm.commands.prompt_words import read_part, read_parts
from latentlm.config import load_recipe
from latentlm.errors import Notice, UserError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def stdin(monkeypatch):
    def choose(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return choose


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("~/x.wav", "HOME/x.wav"),
        ("--out=~/My files/x.wav", "--out=HOME/My files/x.wav"),
        ("1=~/anna.wav", "1=HOME/anna.wav"),
        ("--voice=1=~/anna.wav", "--voice=1=HOME/anna.wav"),
        ("tokenizers.image=~/runs/mine", "tokenizers.image=HOME/runs/mine"),
        ("~", "~"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
        ("about ~/x", "about ~/x"),
        ("a~/x", "a~/x"),
    ],
)
def test_the_home_folder_of_any_path(home, word, expected):
    assert expanded(word) == expected.replace("HOME", str(home))


def test_a_result_goes_into_the_home_folder(home, capsys):
    cli.main(["generate", "tiny", "a", "--to", "text", "--max-tokens", "1", "--out=~/new/a.txt"])
    assert (home / "new" / "a.txt").is_file()
    assert not Path("~").exists()


def test_a_dash_is_stdin_unless_an_option_takes_it():
    assert prepared(["generate", "tiny", "-", "--raw", "-"]) == [
        "generate",
        "tiny",
        "/dev/stdin",
        "--raw",
        "/dev/stdin",
    ]
    assert prepared(["generate", "tiny", "--out", "-", "--", "-"])[3:] == ["-", "--", "/dev/stdin"]


@pytest.mark.parametrize("word", ["-", "/dev/stdin"])
def test_stdin_is_the_text_in_it(stdin, word):
    stdin(b"\xef\xbb\xbfred apple\r\n")
    assert read_part(word, "image") == "red apple"
    stdin("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"^stdin: not UTF-8 text"):
        read_part(word, "image")
    with pytest.raises(UserError, match="stdin can be read only once"):
        read_parts([word, "a", "-"], "image")


def test_stdin_reaches_the_model(stdin, capsys):
    command = ["--to", "text", "--max-tokens", "3"]
    cli.main(["generate", "tiny", "red apple", *command])
    expected = capsys.readouterr().out
    stdin(b"red apple\n")
    cli.main(["generate", "tiny", "-", *command])
    assert capsys.readouterr().out == expected
    cli.main(["generate", "tiny", *command, "--", "-5 degrees"])
    assert capsys.readouterr().out


def test_a_pipe_is_the_text_in_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("red apple\n",))
    writer.start()
    assert read_part(str(tmp_path / "pipe"), "image") == "red apple"
    writer.join()


def test_a_packaged_name_is_the_packaged_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    packaged = resolve("tiny")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    with pytest.warns(Notice, match=r"^'tiny' is the packaged model; write ./tiny for the folder tiny that is here$"):
        assert resolve("tiny") == packaged
    assert resolve("./tiny") == resolve(Path("tiny")) == Path("tiny")
    assert resolve(".") if (tmp_path / "config.json").write_text("{}") else None
    cli.main(["generate", "tiny", "a", "--to", "text", "--max-tokens", "1"])
    assert capsys.readouterr().err.count("is the packaged model") == 1


def test_a_packaged_recipe_is_the_packaged_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("latentlm.training.run.train", lambda recipe, folder, **_: asked.append(str(folder)) or folder)
    cli.main(["train", "demo"])
    assert capsys.readouterr().err == ""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "recipe.yaml").write_text(yaml.safe_dump(load_recipe("demo").model_dump(mode="json")))
    cli.main(["train", "demo"])
    assert "'demo' is the packaged recipe; write ./demo for the run in the folder demo" in capsys.readouterr().err
    cli.main(["train", "./demo"])
    assert capsys.readouterr().err == ""
    assert asked == ["runs/demo", "runs/demo", "demo"]


def test_a_random_seed_is_printed_and_repeats_the_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "tiny", "red apple", "--to", "image", "--steps", "1", "--guidance", "1", "--out"]
    cli.main([*command, "a.png", "--seed", "random"])
    said = capsys.readouterr().err.removeprefix("latentlm: ").split()
    cli.main([*command, "b.png", *said])
    cli.main([*command, "c.png", "--seed", "random"])
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_examples_fit_a_terminal_of_80_columns():
    apps = [cli.app, *cli.app.subapps, *cli.app["data"].subapps]
    lines = [line for app in apps for line in (app.help_epilogue or "").splitlines()]
    assert len(lines) > 20
    assert [line for line in lines if len(line) > 78] == []
