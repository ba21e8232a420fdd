"""`latentlm data validate`: what is not read, what is silent, and what a recipe would refuse."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from sets import png, write_lines

from latentlm import cli
from latentlm.config import SourceConfig
from latentlm.data import sources
from latentlm.data.encoding.plan import names_other_files
from latentlm.media.picture import image_to_tensor


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.png").write_bytes(png(0))
    return tmp_path


READ = "data are a JSONL manifest (.jsonl), Parquet (.parquet), uncompressed WebDataset tars (.tar), or a folder"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table.csv", "a table is read as Parquet: pandas.read_csv(table.csv).to_parquet("),
        ("words.txt", "words.txt: text is given as JSONL, one document per line: {"),
        (
            "lines.jsonl.gz",
            "is compressed, which allows no random access; unpack it first: gunzip -k lines",
        ),
        ("lines.jsonl.zst", "unpack it first: unzstd lines.jsonl.zst"),
        ("list.json", "list.json: is not JSON Lines: one document per line"),
        ("a.wav", "a.wav: a single file of speech; name it in a manifest, or give a folder of such files"),
        ("thing.xyz", f"thing.xyz: unknown kind of file: {READ}"),
        ("clips", "clips/a.wav: has no text: the folder of a file names its class, as in cat/a.wav; other texts are"),
        ("texts", "texts: no files of image, speech, vectors in this folder; text is read from .jsonl"),
        ("flat.jsonl", "flat.jsonl:1: 'text' is not inside 'segments'; a line is like {"),
    ],
)
def test_what_is_not_read_says_what_to_do(folder, capsys, name, said):
    (folder / "table.csv").write_text("text,image\na cat,0.png\n")
    (folder / "words.txt").write_text("Hello there.\n")
    line = json.dumps({"segments": [{"text": "abc"}]}) + "\n"
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    (folder / "lines.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00")
    (folder / "list.json").write_text(f"[{line}]")
    (folder / "thing.xyz").write_bytes(b"\xff\xfe")
    for sub in ("clips", "texts"):
        (folder / sub).mkdir()
    (folder / "texts" / "a.txt").write_text("abc")
    for path in ("a.wav", "clips/a.wav"):
        soundfile.write(folder / path, np.zeros(800), 8000)
    (folder / "flat.jsonl").write_text('{"text": "a cat", "image": "0.png"}\n')
    for command in ("validate", "preview"):
        with pytest.raises(SystemExit):
            cli.main(["data", command, name])
        (error,) = capsys.readouterr().err.splitlines()
        assert said in error
    if (folder / name).is_file() and not name.startswith("flat"):
        for key in ("path", "manifest"):
            with pytest.raises(ValueError, match=re.escape(name)):
                sources.documents(SourceConfig(**{key: name}))


def test_validate_names_silent_clips(folder, capsys):
    for word, level in (("seven", 0.1), ("eight", 0.0)):
        (folder / "clips" / word).mkdir(parents=True)
        soundfile.write(folder / "clips" / word / "a.wav", np.sin(np.arange(800)) * level, 8000)
    write_lines(folder / "clips.jsonl", [{"segments": [{"speech": f"clips/{w}/a.wav"}]} for w in ("seven", "eight")])
    cli.main(["data", "validate", "clips.jsonl"])
    assert "1 clip is silent: clips.jsonl:2" in capsys.readouterr().err
    cli.main(["data", "validate", "clips", "--task", "text_to_speech"])
    said = capsys.readouterr()
    assert "clips/eight/a.wav" in said.err
    assert "2 documents, all of them can be read; segments: 2 text, 2 speech" in said.out


def test_validate_refuses_what_is_no_sound_with_its_line(folder, capsys):
    """Training and evaluation would: a clip without a sample at their rate, and samples at another scale."""
    (folder / "clips" / "seven").mkdir(parents=True)
    path = folder / "clips" / "seven" / "a.wav"
    line = {"segments": [{"text": "seven", "condition": True}, {"speech": "clips/seven/a.wav"}]}
    write_lines(folder / "clips.jsonl", [{"segments": [{"text": "fine"}]}, line])
    for samples, rate, said in ((np.full(1, 0.5), 48000, "too short"), (np.full(800, 13090.0), 8000, "peak is 13,090")):
        soundfile.write(path, samples, rate, subtype="FLOAT")
        for arguments, where in (
            (["clips.jsonl"], "clips.jsonl:2: segments.1.speech: "),
            (["clips", "--task", "text_to_speech"], "clips/seven/a.wav: speech: "),
        ):
            with pytest.raises(SystemExit):
                cli.main(["data", "validate", *arguments])
            (error,) = capsys.readouterr().err.splitlines()
            assert where in error
            assert said in error


def test_validate_says_that_channels_cancel(folder, capsys):
    tone = np.sin(np.arange(8000) * 0.3) * 0.5
    soundfile.write(folder / "a.wav", np.stack([tone, -tone], axis=1), 8000)
    write_lines(folder / "clips.jsonl", [{"segments": [{"speech": "a.wav"}]}])
    cli.main(["data", "validate", "clips.jsonl"])
    said = capsys.readouterr().err
    assert "a.wav: its channels cancel each other" in said
    assert "1 clip is silent: clips.jsonl:1" in said


def test_validate_finds_what_does_not_fit_a_recipe(folder, capsys):
    write_lines(
        folder / "mine.jsonl",
        [{"segments": [{"text": "a word of " * 20}]}, {"segments": [{"text": "a", "condition": True}, {"text": "b"}]}],
    )
    recipe = {
        "kind": "latentlm",
        "tokenizers": {"text": {"kind": "bytes"}},
        "model": {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}},
        "data": {"sequence_length": 64, "sources": [{"name": "prose"}]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    cli.main(["data", "validate", "mine.jsonl", "--recipe", "recipe.yaml"])
    said = capsys.readouterr()
    assert "recipe.yaml: 5 documents fit rows of 64 positions" in said.out
    cli.main(["data", "validate", "mine.jsonl", "--recipe", "."])  # the folder of a run, which has its recipe
    assert ".: 5 documents fit rows of 64 positions" in capsys.readouterr().out
    assert "mine.jsonl: 1 texts of more than 64 positions are split into 4 documents" in said.err
    lines = [{"segments": [{"text": "a"}]}, {"segments": [{"text": "a" * 70, "condition": True}, {"text": "b"}]}]
    write_lines(folder / "mine.jsonl", lines)
    with pytest.raises(SystemExit):
        cli.main(["data", "validate", "mine.jsonl", "--recipe", "recipe.yaml"])
    assert "mine.jsonl:2 has 72 positions, but data.sequence_length is 64; only plain text" in capsys.readouterr().err
    write_lines(folder / "lines.jsonl", [{"segments": [{"text": "a"}]}])
    write_lines(folder / "mine.jsonl", [{"segments": [{"text": "a"}]}, {"segments": [{"image": "0.png"}]}])
    with pytest.raises(SystemExit):
        cli.main(["data", "validate", "mine.jsonl", "--recipe", "recipe.yaml"])
    assert "mine.jsonl:2: documents contain image, but the model has no image tokenizer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", "validate", "lines.jsonl", "--recipe", "tiny_image"])
    assert "--recipe tiny_image: is of kind image_tokenizer; name the recipe of a model" in capsys.readouterr().err


def test_pictures_of_a_folder_are_named(folder, capsys, notices):
    for name, size in (("a.png", (8, 4)), ("b.png", (4, 4))):
        (folder / "photos" / "red_fox").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / "photos" / "red_fox" / name)
    with pytest.raises(SystemExit):
        cli.main(["data", "validate", "photos"])
    assert "image_to_text, text (in a command: --task text_to_image)" in capsys.readouterr().err
    config = SourceConfig(path="photos", task="text_to_image")
    assert not names_other_files(config)
    (document, _) = sources.documents(config)
    image_to_tensor(document.segments[1].content, 4)
    assert ["photos/red_fox/a.png: not square" in said for said in notices()] == [True]
    (folder / "photos" / "red_fox" / "b.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        cli.main(["data", "validate", "photos", "--task", "text_to_image"])
    said = capsys.readouterr().err
    assert "photos/red_fox/b.png: image: not a readable" in said
    assert said.count("b.png") == 1
