"""Training on texts longer than a row: plain ones are split, said; others are refused with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentlm.config import parse_recipe
from latentlm.errors import Notice
from latentlm.training.distributed import World
from latentlm.training.latentlm import build_latentlm, document_loader
from latentlm.training.logs import read_log
from latentlm.training.run import preview, train

LONG = "A sentence of some words. " * 12


def recipe(source: dict):
    return parse_recipe(
        {
            "kind": "latentlm",
            "tokenizers": {"text": {"kind": "bytes"}},
            "model": {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}},
            "data": {"sequence_length": 64, "rows": 2, "sources": [source]},
            "training": {"steps": 3, "log_every": 1, "save_every": 3, "precision": "fp32", "ema": 0.0},
        }
    )


def write(folder: Path, *documents: list[dict]) -> str:
    path = folder / "prose.jsonl"
    path.write_text("".join(json.dumps({"segments": segments}) + "\n" for segments in documents), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", ["manifest", "path"])
def test_plain_text_is_split_and_all_of_it_learnt(tmp_path, kind):
    path = write(tmp_path, [{"text": "Short."}], [{"text": LONG}])
    with pytest.warns(Notice, match=r"prose\.jsonl: 1 texts of more than 64 positions are split into 6 documents"):
        run = build_latentlm(recipe({kind: path}), tmp_path / "run", World())
    (documents,) = run.documents
    assert "".join(document.segments[0].text for document in documents) == "Short." + LONG
    assert documents.documents.place(1).endswith(", piece 1 of 6")
    assert len(document_loader(recipe({kind: path}), run, World()).next_step()) == 1
    with pytest.warns(Notice, match="are split into"):
        train(recipe({kind: path}), tmp_path / "run")
    assert len(read_log(tmp_path / "run" / "train.jsonl")) == 3


def test_a_dry_run_splits_as_training_does(tmp_path):
    path = write(tmp_path, [{"text": "Short."}], [{"text": LONG}])
    with pytest.warns(Notice, match="are split into 6 documents"):
        lines = preview(recipe({"manifest": path}))
    assert any("prose.jsonl: 7 documents" in line for line in lines)
    (tmp_path / "other").mkdir()
    path = write(tmp_path / "other", [{"text": "Who?", "condition": True}, {"text": LONG}])
    with pytest.raises(ValueError, match=r"prose\.jsonl:1 has 317 positions"):
        preview(recipe({"manifest": path}))


def test_what_is_not_plain_text_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, [{"text": "Short."}], [{"text": "Who?", "condition": True}, {"text": LONG}])
    with pytest.raises(
        ValueError, match=r"prose\.jsonl:2 has 317 positions, but data\.sequence_length is 64; only plain"
    ):
        build_latentlm(recipe({"manifest": path}), tmp_path / "run", World())
