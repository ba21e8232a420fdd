"""Old names of keys: read in recipes, overrides, configs and checkpoints, and said where a person wrote them."""

import warnings
from pathlib import Path

import pytest
import yaml

from latentlm import cli
from latentlm.config import ModelConfig, RecipeError, load_recipe, parse_recipe
from latentlm.config.renamed import with_current_names
from latentlm.errors import Notice
from latentlm.training.state import RunProgress, TrainerState


def test_an_old_key_of_a_recipe_is_read_and_said(tmp_path):
    recipe = load_recipe("demo")
    raw = recipe.model_dump(mode="json")
    raw["training"]["accumulation"] = raw["training"].pop("global_micro_batches") + 2
    raw["data"]["sources"][0]["warped_copies"] = raw["data"]["sources"][0].pop("augmented_copies")
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.warns(Notice) as said:
        old = load_recipe(path)
    assert [str(each.message) for each in said] == [
        f"{path}: accumulation is called global_micro_batches now; the old name is still read",
        f"{path}: warped_copies is called augmented_copies now; the old name is still read",
    ]
    assert old.training.global_micro_batches == recipe.training.global_micro_batches + 2
    assert old.data == recipe.data


def test_the_command_line_says_it_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("latentlm.training.run.train", lambda *_, **__: tmp_path)
    path = tmp_path / "old.yaml"
    raw = load_recipe("demo").model_dump(mode="json")
    raw["training"]["accumulation"] = raw["training"].pop("global_micro_batches")
    path.write_text(yaml.safe_dump(raw))
    cli.main(["train", str(path)])
    said = f"latentlm: {path}: accumulation is called global_micro_batches now; the old name is still read\n"
    assert capsys.readouterr().err == said


def test_an_override_under_its_old_name_wins_over_the_recipe():
    assert load_recipe("demo", {"training.accumulation": 6}).training.global_micro_batches == 6


def test_both_names_at_once_are_refused():
    raw = load_recipe("demo").model_dump(mode="json")
    raw["training"]["accumulation"] = 2
    with pytest.raises(RecipeError, match="accumulation is the old name of global_micro_batches: give one of them"):
        parse_recipe(raw)


@pytest.mark.parametrize(("answer", "stop_at"), [("span", "eod"), ("document", "eos")])
def test_the_config_of_an_old_checkpoint_loads_without_a_word(answer, stop_at):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ModelConfig.model_validate({"answer": answer}).stop_at == stop_at
        assert ModelConfig.model_validate({"prompt": "vibevoice"}).prompt == "script"


def test_a_run_begun_under_old_names_can_be_resumed():
    then = {"training.accumulation": 2, "model": {"answer": "span"}, "data": {"sources": [{"warped_copies": 3}]}}
    now = {
        "training.global_micro_batches": 2,
        "model": {"stop_at": "eod"},
        "data": {"sources": [{"augmented_copies": 3}]},
    }
    assert with_current_names(then) == now
    fields = TrainerState(then, RunProgress(), 0, {"streams": {}}, [{}], {}).dump()
    TrainerState.parse(Path("c"), fields).check(Path("c"), now)
