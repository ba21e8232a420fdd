"""`latentlm encode`: from files to shards that train, what it says, and how it goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from sets import picture_folder, picture_parquet, png, word, write_lines, write_parquet
from small import small_tokenizers

from latentlm import cli
from latentlm.data.shards import ShardDocuments
from latentlm.errors import UserError
from latentlm.training.logs import read_log


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_tokenizers()["image"].save("image")
    picture_parquet(tmp_path / "set.parquet", 40)
    return tmp_path


PARQUET = ["encode", "set.parquet", "--column", "image=image", "--column", "text=text", "--task", "text_to_image"]
RECIPE = """
kind: latentlm
tokenizers: {image: image}
model: {transformer: {width: 16, num_layers: 1, num_heads: 2}, head: {num_layers: 1}}
data: {sequence_length: 40, rows: 2, sources: [{shards: shards/set}]}
training: {steps: 2, log_every: 1}
"""


def test_a_parquet_file_becomes_shards_that_train(folder, capsys):
    cli.main([*PARQUET, "--tokenizers", "image", "--out", "shards/set"])
    said = capsys.readouterr().out
    assert said == "shards/set: 40 documents (40 image, 40 text) in 1 files; latents: 160 of image\n"
    Path("small.yaml").write_text(RECIPE, encoding="utf-8")
    cli.main(["train", "small.yaml", "--out", "run"])
    assert [record["step"] for record in read_log(folder / "run" / "train.jsonl")] == [1, 2]
    cli.main([*PARQUET, "--tokenizers", "image", "--out", "shards/set"])
    assert "40 documents had been encoded before" in capsys.readouterr().out


def test_threads_are_those_asked_for_or_of_omp(folder, monkeypatch):
    jobs = []

    def stop(job, **_):
        jobs.append(job)
        raise UserError("stop")

    monkeypatch.setattr("latentlm.data.encoding.workers.encode", stop)
    before = torch.get_num_threads()
    try:
        for more, threads in ((["--threads", "2"], 2), ([], 1)):
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
            with pytest.raises(SystemExit):
                cli.main([*PARQUET, "--tokenizers", "image", "--out", "shards/set", *more])
            assert jobs[-1].threads == threads == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_a_folder_with_two_processes_and_the_tokenizers_of_a_model(folder, capsys):
    picture_folder(folder / "photos", 9)
    cli.main(
        [
            *["encode", "photos", "--task", "image_to_text", "--tokenizers", "tiny", "--out", "shards/photos"],
            "--processes",
            "2",
        ]
    )
    found = ShardDocuments("shards/photos")
    assert sorted(d.segments[1].text for d in found) == sorted(word(i) for i in range(9))
    assert found.index.tokenizers["image"].latent_dim == 96
    assert "9 documents" in capsys.readouterr().out


def test_embedded_sources_by_name(folder, capsys):
    cli.main(["encode", "prose", "--task", "text", "--out", "shards/prose"])
    assert "latents: none" in capsys.readouterr().out


def test_what_is_left_out_is_summed_up(folder, capsys):
    values = [png(i) if i % 4 else b"nothing" for i in range(40)]
    write_parquet(folder / "set.parquet", {"image": values, "text": ["a"] * 40})
    cli.main([*PARQUET, "--tokenizers", "image", "--out", "out", "--on-error", "skip"])
    _, *said = capsys.readouterr().out.splitlines()
    where = ", ".join(f"{folder}/set.parquet: row {i}" for i in range(0, 20, 4))
    assert said == [
        "    skipped 10, all of them in skipped.jsonl:",
        f"    10 × image: not a readable image (of no known format): {where} and 5 more",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "--out", "out"], "name at least one source"),
        (["encode", "none.parquet", "--task", "text", "--out", "out"], "none.parquet: no such file"),
        (["encode", "set.parquet", "--out", "out"], "set.parquet: give the task, one of: text_to_image"),
        ([*PARQUET, "--out", "out"], "row 0: documents contain image, but the model has no image tokenizer"),
        ([*PARQUET, "--out", "out", "--column", "image"], "--column 'image': write NAME=COLUMN"),
        ([*PARQUET, "--out", "out", "--column", "imag=x"], "columns: no column 'imag', did you mean 'image'?"),
        ([*PARQUET, "--out", "out", "--processes", "0"], "--processes must be at least 1, got 0"),
        ([*PARQUET, "--out", "out", "--tokenizers", "image", "--tokenizers", "tiny"], "a tokenizer of image is given"),
        ([*PARQUET, "--out", "out", "--tokenizers", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latentlm: ")
    assert said in line


@pytest.mark.parametrize(
    ("module", "said"), [("array_record", "pip install array_record"), ("pyarrow", "pip install pyarrow")]
)
def test_a_missing_library_is_named_with_its_installation(folder, capsys, monkeypatch, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.python", None)
    monkeypatch.setitem(sys.modules, f"{module}.parquet", None)
    with pytest.raises(SystemExit):
        cli.main([*PARQUET, "--tokenizers", "image", "--out", "out"])
    assert said in capsys.readouterr().err


def test_ray_that_is_missing_is_named_with_its_installation(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        cli.main([*PARQUET, "--tokenizers", "image", "--out", "out", "--engine", "ray"])
    assert "engine ray needs Ray: pip install 'ray[data]'" in capsys.readouterr().err


def test_preview_and_validate_read_the_same_sources(folder, capsys):
    cli.main([*PARQUET, "--tokenizers", "image", "--out", "shards/set"])
    capsys.readouterr()
    rows = ["set.parquet", "--task", "image_to_text", "--column", "image=image"]
    cli.main(["data", "preview", *rows, "-n", "2", "--out", "look"])
    assert capsys.readouterr().out == "0: [image 8×8] 'cat'\n1: [image 8×8] 'red dog'\n"
    assert sorted(path.name for path in Path("look").iterdir()) == ["0_0.png", "1_0.png"]
    cli.main(["data", "preview", "shards/set", "-n", "1"])
    assert capsys.readouterr().out == "0: ['cat'] image 4 × 6 latents\n"
    for arguments in (rows, ["shards/set"]):
        cli.main(["data", "validate", *arguments])
        assert "40 documents, all of them can be read" in capsys.readouterr().out
    write_parquet(folder / "set.parquet", {"image": [png(0), b"nothing"], "text": ["a", "b"]})
    with pytest.raises(SystemExit):
        cli.main(["data", "validate", *rows])
    assert "set.parquet: row 1: image: not a readable image" in capsys.readouterr().err


def test_a_manifest_may_be_called_anything_and_a_pattern_is_a_path(folder, capsys):
    for name in ("lines.txt", "lines.jsonl"):
        write_lines(folder / name, [{"segments": [{"text": "abc"}]}])
    for name, said in (("lines.txt", "1: text 'abc'\n"), ("lines.jsonl", "1: text 'abc'\n"), ("*.jsonl", "0: 'abc'\n")):
        cli.main(["data", "preview", name])
        assert capsys.readouterr().out == said
        cli.main(["data", "validate", name])
        assert f"{name}: 1 documents" in capsys.readouterr().out


def test_a_task_and_columns_count_or_are_refused(folder, capsys):
    cli.main(["data", "preview", "shapes", "-n", "1", "--task", "text_to_image"])
    assert capsys.readouterr().out.startswith("text_to_image 1: ")
    write_lines(folder / "lines.jsonl", [{"segments": [{"text": "abc"}]}])
    cli.main(["encode", "lines.jsonl", *PARQUET[1:], "--tokenizers", "image", "--out", "shards/set"])
    assert "41 documents" in capsys.readouterr().out
    for arguments, said in (
        (["data", "preview", "shapes", "--column", "text=a"], "--column text=a: an embedded source has no columns"),
        (["data", "preview", "shapes", "--task", "text_to_imag"], "no task 'text_to_imag', did you mean"),
        (
            ["data", "preview", "lines.jsonl", "--column", "text=a"],
            "--column text=a: for rows only; each line",
        ),
        (
            ["data", "validate", "lines.jsonl", "--task", "text"],
            "--task text: for rows only; each line",
        ),
        (["data", "validate", "shards/set", "--task", "text"], "the task was chosen when they were encoded"),
        (["data", "preview", "shards/set", "--column", "text=a"], "columns is only for path"),
        (["encode", "shapes", "--column", "text=a", "--out", "out"], "--column text=a: none of shapes has columns"),
        (["encode", "lines.jsonl", "--task", "text", "--out", "out"], "its lines say what each document is"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert said in capsys.readouterr().err
