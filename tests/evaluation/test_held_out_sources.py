"""What the paths and shards of a recipe hold out is measured after training, or the reason why not is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from sets import picture_parquet
from small import small_tokenizers

from latentlm.checkpoint import resolve
from latentlm.config import SourceConfig, parse_recipe
from latentlm.data.encoding.plan import Job
from latentlm.data.encoding.workers import encode
from latentlm.evaluation.folder import EvaluationRequest, evaluate_model, evaluate_tokenizer_folder
from latentlm.training.run import train


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    small_tokenizers()["image"].save(root / "image")
    picture_parquet(root / "set.parquet", 20)
    config = SourceConfig(path=str(root / "set.parquet"), task="text_to_image")
    encode(Job((config,), {"image": str(root / "image")}, str(root / "shards")))
    return root


def trained(root: Path, run: Path, *sources: dict) -> str:
    small = {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}}
    recipe = {
        "kind": "latentlm",
        "tokenizers": {"text": {"kind": "bytes"}, "image": str(root / "image")},
        "model": small,
        "data": {"sequence_length": 40, "rows": 2, "sources": list(sources)},
        "training": {"steps": 1, "precision": "fp32"},
    }
    train(parse_recipe(recipe), run)
    return str(run)


def measured(name: str, said: list[str], *only: str):
    request = EvaluationRequest(
        name, resolve(name), torch.device("cpu"), only=only, steps=2, quick=True, say=said.append
    )
    return evaluate_model(request)


def test_a_number_of_the_rows_of_a_path(root, tmp_path):
    source = {"path": str(root / "set.parquet"), "task": "image_to_text", "held_out": 4}
    said: list[str] = []
    report = measured(trained(root, tmp_path / "run", source), said)
    protocol = report.figures["documents.text_loss"].protocol
    assert f"4 documents of the held-out part of {root}/set.parquet (image_to_text)" in protocol
    assert {"documents.exact_match", "documents.image_psnr"} <= set(report.figures)
    assert said == ["evaluating documents"]


def test_shards_are_scored_and_what_cannot_be_opened_is_said(root, tmp_path):
    sources = [{"shards": str(root / "shards"), "held_out": 0.2}]
    gone = picture_parquet(tmp_path / "gone.parquet", 4)
    sources.append({"path": str(root / "set.parquet"), "task": "text_to_image", "held_out": str(gone)})
    run = trained(root, tmp_path / "run", *sources)
    gone.unlink()
    said: list[str] = []
    report = measured(run, said)
    assert "4 documents of" in report.figures["documents.image_loss"].protocol
    assert "documents.image_psnr" not in report.figures
    assert "documents: 4 come from shards, which hold no media, and were only scored." in report.notes
    assert said[0] == f"{gone}: no such file; the recipe's held-out documents are left out, name others with --manifest"


def test_a_model_of_one_s_own_pictures_is_measured_on_them_alone(root, tmp_path):
    own = {"path": str(root / "set.parquet"), "task": "text_to_image", "held_out": 4}
    report = measured(trained(root, tmp_path / "run", own), [])
    parts = {name.split(".")[0] for name in report.figures}
    assert parts == {"documents", "seconds"}
    flat = report.to_dict()
    assert None not in flat.values()
    assert not [key for key in flat if "digits" in key or "speech" in key]
    assert "documents.image_loss" in flat
    assert flat["standard_error.documents.image_loss"] > 0


def test_a_model_whose_own_data_hold_nothing_out_says_how_to_measure_it(root, tmp_path):
    own = {"path": str(root / "set.parquet"), "task": "text_to_image"}
    report = measured(trained(root, tmp_path / "run", own), [])
    assert not report.figures
    assert report.left_out == {
        "documents": "not measured, no held-out documents: name a manifest of them with --manifest"
    }


def test_the_training_pictures_of_the_recipe_train_the_judge(root, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "latentlm.evaluation.folder.evaluate",
        lambda pipeline, **options: seen.append(options["training"]),
    )
    own = {"path": str(root / "set.parquet"), "task": "text_to_image", "held_out": 4}
    name = trained(root, tmp_path / "run", own)
    measured(name, [])
    (training,) = seen
    assert {modality: [len(part) for part in parts] for modality, parts in training.items()} == {
        "image": [16],
        "speech": [],
    }
    said: list[str] = []
    kept = root / "set.parquet"
    moved = kept.rename(tmp_path / "moved.parquet")
    try:
        measured(name, said)
    finally:
        moved.rename(kept)
    assert any("the judges learn from the held-out documents alone" in line for line in said)
    assert seen[1] == {"image": [], "speech": []}


@pytest.mark.parametrize("held_out", [4, None])
def test_a_tokenizer_is_measured_on_what_its_own_run_held_out(root, tmp_path, held_out):
    source = {"path": str(root / "set.parquet"), "held_out": held_out}
    tokenizer = {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    recipe = {"kind": "image_tokenizer", "tokenizer": tokenizer | layers, "training": {"steps": 1, "precision": "fp32"}}
    recipe["data"] = {"sources": [source], "batch_size": 4, "workers": 0}
    train(parse_recipe(recipe), tmp_path / "run")
    said: list[str] = []
    name = str(tmp_path / "run")
    request = EvaluationRequest(name, resolve(name), torch.device("cpu"), quick=True, say=said.append)
    report = evaluate_tokenizer_folder(request)
    if held_out:
        assert (
            f"4 pictures of the held-out part of {root}/set.parquet" in report.figures["documents.image_psnr"].protocol
        )
        assert said == []
    else:
        assert "reconstruction.digits_psnr" in report.figures
        assert said == ["measured on media of the package; --manifest names a JSONL file of your own"]
