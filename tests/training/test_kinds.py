"""A kind of recipe is one record: with it a fourth kind is read, trained, resumed, exported and loaded."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import without_clock
from toy_kind import TOY, ToyRecipe

import latentlm
from latentlm import cli
from latentlm.config import RecipeError, load_recipe, parse_recipe
from latentlm.config.kinds import KINDS, lookup, register, spec_of_folder
from latentlm.training.run import train


@pytest.fixture
def toy():
    register(TOY)
    yield
    del KINDS["toy"]


def recipe(**training):
    defaults = {"steps": 60, "log_every": 10, "save_every": 30, "ema": 0.5, "precision": "fp32", "threads": 1}
    optimizer = {"learning_rate": 0.05, "warmup_steps": 0, "schedule": "constant"}
    return parse_recipe({"kind": "toy", "width": 3, "training": defaults | {"optimizer": optimizer} | training})


def test_it_trains_exports_and_loads(toy, tmp_path):
    folder = train(recipe(), tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "ema.safetensors"}
    x = torch.tensor([[2.0], [1.5]])
    for name in (folder, tmp_path / "run"):
        torch.testing.assert_close(latentlm.load(name).net(x), 3 * x, rtol=0, atol=0.3)
    assert not torch.equal(latentlm.load(folder, weights="raw").net(x), latentlm.load(folder).net(x))
    assert latentlm.load(folder, dtype=torch.bfloat16).net[0].weight.dtype == torch.bfloat16


def test_it_resumes_bit_by_bit_and_refuses_another(toy, tmp_path):
    train(recipe(), tmp_path / "whole")
    train(recipe(steps=30), tmp_path / "parts")
    train(recipe(), tmp_path / "parts", resume=True)
    first, second = (without_clock(tmp_path / name / "train.jsonl") for name in ("whole", "parts"))
    assert first == second
    for name in ("model", "ema"):
        a, b = ((tmp_path / f / f"model/{name}.safetensors").read_bytes() for f in ("whole", "parts"))
        assert a == b
    other = recipe(steps=70).model_copy(update={"width": 5})
    with pytest.raises(ValueError, match="was made with width = 3, this run has 5; cannot resume"):
        train(other, tmp_path / "whole", resume=True)


def test_the_command_line_trains_it_and_says_that_nothing_is_measured_of_it(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(yaml.safe_dump(recipe(steps=2).model_dump(mode="json")))
    cli.main(["train", "toy.yaml", "--set", "width=2"])
    assert load_recipe("runs/toy/recipe.yaml").width == 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "runs/toy", "--out", "x.json"])
    assert ended.value.code == 2
    assert "there is no evaluation for a toy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 2}, "r.yaml: unknown key 'widht', did you mean 'width'?"),
        ({"training": {"stpes": 2}}, "r.yaml: unknown key 'training.stpes', did you mean 'steps'?"),
        ({"width": "wide"}, "r.yaml: width: Input should be a valid integer"),
    ],
)
def test_its_wrong_keys_are_named(toy, fields, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe({"kind": "toy"} | fields, "r.yaml")
    assert str(error.value).startswith(message)


def test_its_kind_is_among_those_that_are_known(toy):
    assert isinstance(parse_recipe({"kind": "toy"}), ToyRecipe)
    with pytest.raises(RecipeError, match=r"no kind 'tyo', did you mean 'toy'\?; one of latentlm, .*, toy$"):
        parse_recipe({"kind": "tyo"})


def test_without_the_record_it_is_unknown(tmp_path):
    with pytest.raises(RecipeError, match="no kind 'toy'"):
        parse_recipe({"kind": "toy"})
    (tmp_path / "config.json").write_text(json.dumps({"format_version": 1, "kind": "line"}))
    known = "latentlm, image, conv_image, speech"
    with pytest.raises(ValueError, match=rf"{tmp_path}/config.json: kind is 'line', expected one of {known}$"):
        latentlm.load(tmp_path)


def test_a_kind_is_registered_once(toy):
    with pytest.raises(ValueError, match="kind 'toy' or its folders line are registered already"):
        register(TOY)


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_all_that_a_record_names_is_there(spec):
    for name in (spec.build, spec.loader, spec.export, spec.load, spec.evaluate):
        assert callable(lookup(name))
    assert KINDS[spec.kind] is spec
    for kind in spec.folder_kinds():
        assert spec_of_folder(kind, "x") is spec


@pytest.mark.parametrize("kind", [["latentlm"], 3, {"a": 1}])
def test_a_kind_that_is_no_word_is_one_line(kind):
    with pytest.raises(RecipeError, match=r"r.yaml: kind: no kind .*; one of latentlm"):
        parse_recipe({"kind": kind}, "r.yaml")
