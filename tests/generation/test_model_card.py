"""`model.save` and its model card: the model comes back, and the card says what the files hold."""

import json

import numpy as np
import pytest
import torch
import yaml

from latentlm.checkpoint import read_metadata
from latentlm.errors import UserError
from latentlm.generation.model_card import model_card, parameters_by_part
from latentlm.generation.pipeline import Pipeline, load
from latentlm.weights import read_weights

SOURCES = [{"name": "digits", "task": "text_to_image"}, {"manifest": "/home/me/mine.jsonl", "task": "all"}]
METADATA = {
    "recipe": {"kind": "latentlm", "description": "digits and more", "data": {"sources": SOURCES}},
    "step": 1200,
}


@pytest.fixture
def known(model, tokenizers) -> Pipeline:
    return Pipeline(model, tokenizers, METADATA)


def front_matter(card: str) -> dict:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_a_saved_model_is_the_model(known, tmp_path):
    assert known.save(tmp_path / "new" / "mine") == tmp_path / "new" / "mine"
    loaded = load(tmp_path / "new" / "mine")
    one, two = (np.asarray(p.generate("ab", "image", steps=2)[0]) for p in (known, loaded))
    assert np.array_equal(one, two)
    assert loaded.metadata == METADATA == read_metadata(tmp_path / "new" / "mine")
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "mine" / name).read_bytes()


def test_a_model_is_saved_in_its_dtype(known, tmp_path):
    known.save(tmp_path / "one")
    load(tmp_path / "one", dtype=torch.bfloat16).save(tmp_path / "two")
    assert {t.dtype for t in read_weights(tmp_path / "two" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_is_there_stays_and_what_fails_leaves_nothing(known, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: exists already; name a new folder"):
        known.save(tmp_path / "there")
    with pytest.raises(UserError, match=r"none.json: no such file"):
        known.save(tmp_path / "mine", evaluation=tmp_path / "none.json")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_front_matter_is_what_the_hub_reads(known, tmp_path):
    front = front_matter(model_card(known.save(tmp_path / "mine")))
    assert front == {
        "library_name": "latentlm",
        "license": "unknown",
        "tags": ["latentlm", "next-token-diffusion", "arxiv:2412.08635", "image", "speech"],
        "pipeline_tag": "any-to-any",
    }


def test_the_card_says_what_the_files_hold(known, tmp_path):
    folder = known.save(tmp_path / "mine")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Digits and more" in card
    assert "- digits (text_to_image): scans of handwritten digits, 8×8 grey, named by their word; CC BY 4.0" in card
    assert "- `mine.jsonl` (all)" in card
    assert "It has taken 1,200 steps" in card
    assert "- image: 4 latents of 6 channels" in card
    assert "- speech: any number of latents of 5 channels" in card
    assert 'latentlm.load("OWNER/NAME")' in card
    assert "To be filled in by the author" in card.partition("## Licence")[2]
    assert "Not measured" in card


def test_the_parameters_of_the_parts_add_up(known, tmp_path):
    counts = parameters_by_part(known.save(tmp_path / "mine"))
    model = known.model
    assert counts["transformer"] == sum(p.numel() for p in model.transformer.parameters())
    assert counts["heads.image"] == sum(p.numel() for p in model.heads["image"].parameters())
    parts = {name: number for name, number in counts.items() if not name.endswith(" tokenizer")}
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["image tokenizer"] == sum(v.numel() for v in known.tokenizers["image"].state_dict().values())


def test_figures_of_an_evaluation_are_a_table_with_their_protocol(known, tmp_path):
    report = {"a.accuracy": 0.97123, "reference.a.accuracy": 0.99, "reference_name.a.accuracy": "real data"}
    report |= {"protocol.a.accuracy": "100 samples", "b.loss": None, "required.a.accuracy": 0.9}
    (tmp_path / "report.json").write_text(json.dumps(report))
    card = model_card(known.save(tmp_path / "mine"), tmp_path / "report.json")
    assert "| a.accuracy | 0.9712 | 0.99 (real data) | 100 samples |" in card
    assert "b.loss" not in card
    assert "| required" not in card
