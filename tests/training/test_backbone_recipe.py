"""Runs that begin from a language model: what the recipe says, step 0, a few steps, and the model that comes out."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from backbones import BEGIN, END, write_backbone
from safetensors.torch import load_file

from latentlm import cli
from latentlm.config import RecipeError, load_recipe, parse_recipe
from latentlm.data.packing import DocumentEncoder, pack
from latentlm.generation.pipeline import load
from latentlm.interop import hf_llm
from latentlm.training.distributed import World
from latentlm.training.latentlm import build_latentlm
from latentlm.types import IGNORE, Document, Text

TEXTS = ("Plain text, as a backbone reads it.", "Zwei Zeilen\nund 3 Zeichen: é")


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    return write_backbone(folder, tied_embeddings=request.param, qkv_bias=True)


@pytest.fixture(scope="module")
def image_tokenizer(tokenizers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers["image"].save(folder)
    return folder


def recipe(backbone, image_tokenizer, **training):
    return {
        "kind": "latentlm",
        "tokenizers": {"image": str(image_tokenizer)},
        "model": {"backbone": str(backbone), "head": {"num_layers": 1, "width": 16}},
        "data": {
            "sources": [
                {"name": "digits", "task": "text_to_image", "limit": 8},
                {"name": "shapes", "task": "text", "limit": 8},
            ],
            "sequence_length": 128,
            "rows": 2,
        },
        "training": {"steps": 3, "precision": "fp32", "threads": 1, "optimizer": {"warmup_steps": 1}} | training,
    }


# ------------------------------------------------------------------- the recipe


def test_a_backbone_brings_transformer_and_text(backbone):
    parsed = parse_recipe(recipe(backbone, "tiny"))
    assert parsed.model.transformer is None
    assert parsed.tokenizers.text.kind == "backbone"
    assert parsed.model.special_offset < 0
    assert parse_recipe(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize(
    ("section", "given", "message"),
    [
        ("model", {"transformer": {"width": 64}}, "give transformer or backbone, not both"),
        ("tokenizers", {"text": {"kind": "bytes"}}, "kind must be 'backbone' with a backbone"),
        ("model", {"backbone": None}, "a backbone"),
    ],
)
def test_what_a_backbone_brings_is_not_given_as_well(section, given, message):
    raw = recipe("folder", "tiny")
    raw["model"] |= {"backbone": "folder"}
    raw["tokenizers"] |= {"text": {"kind": "backbone"}}
    raw[section] |= given
    with pytest.raises(RecipeError, match=message):
        parse_recipe(raw)


def test_a_model_without_transformer_or_backbone_is_refused():
    with pytest.raises(RecipeError, match="needs a transformer section or a backbone"):
        load_recipe("demo", {"model.transformer": None})


def test_an_override_takes_the_place_of_what_the_recipe_has():
    plain, begun = load_recipe("demo"), load_recipe("demo", {"model.backbone": "owner/name"})
    assert begun.model.backbone == "owner/name"
    assert begun.model.transformer is None
    assert begun.tokenizers == plain.tokenizers.model_copy(update={"text": begun.tokenizers.text})
    assert (begun.model.head, begun.data, begun.training) == (plain.model.head, plain.data, plain.training)
    with pytest.raises(RecipeError, match="give transformer or backbone, not both"):
        load_recipe("demo", {"model.backbone": "owner/name", "model.transformer": {"width": 64}})


# ----------------------------------------------------------------------- step 0


def test_the_text_loss_at_step_0_is_the_backbones(backbone, image_tokenizer, tmp_path):
    run = build_latentlm(parse_recipe(recipe(backbone, image_tokenizer)), tmp_path, World())
    encoder = DocumentEncoder(run.tokenizers["text"])
    documents = [encoder(Document((Text(text),))) for text in TEXTS]
    assert documents[0].ids[0] == BEGIN
    assert documents[0].text_targets[-1] == END
    batch = pack(documents, {"image": 6})
    num_targets = batch.target_counts()["text"]
    with torch.inference_mode():
        loss = run.model.eval()(batch, torch.Generator().manual_seed(0))["text"] / num_targets
        own = hf_llm.load(backbone).model
        logits = own.text_head(own.hidden(pack(documents, {})))[..., :300]  # the backbone's softmax: no other rows
        expected = F.cross_entropy(logits.flatten(0, 1), batch.text_targets.flatten(), ignore_index=IGNORE)
    assert abs(float(loss - expected)) < 1e-5


def test_what_is_new_is_initialised_by_our_own_rule(backbone, image_tokenizer, tmp_path):
    model = build_latentlm(parse_recipe(recipe(backbone, image_tokenizer)), tmp_path, World()).model.requires_grad_(
        False
    )
    embedding = load_file(backbone / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.embed_tokens.weight[:300], embedding)
    torch.testing.assert_close(model.embed_tokens.weight[300:], embedding.mean(0).expand(5, -1))
    assert (model.text_head.weight is model.embed_tokens.weight) == model.config.transformer.tied_embeddings
    assert float(model.embed_latents["image"].weight.std()) == pytest.approx(6**-0.5, rel=0.2)
    assert not model.heads["image"].final.out.weight.any()


# -------------------------------------------------------------------------- runs


def test_a_run_trains_saves_and_loads_again(backbone, image_tokenizer, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe(backbone, image_tokenizer)))
    cli.main(["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")])
    capsys.readouterr()
    losses = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert losses
    pipeline = load(tmp_path / "run" / "model", weights="raw")
    begun = load_file(backbone / "model.safetensors")
    text = pipeline.tokenizers["text"]
    assert (text.special.bos, text.special.eos, text.special.eod) == (BEGIN, END, 300)
    assert text.decode(text.encode(TEXTS[1])) == TEXTS[1]
    assert pipeline.model.config.transformer.qkv_bias
    assert not torch.equal(pipeline.model.embed_tokens.weight[:300], begun["model.embed_tokens.weight"])
    assert pipeline.generate("three", to="image", steps=2)[0].size == (8, 8)
    assert isinstance(pipeline.generate("three", to="text", max_tokens=3)[0], str)
    hf_llm.save(pipeline, tmp_path / "back")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == begun.keys()


def test_train_with_a_backbone_from_the_command_line(backbone, image_tokenizer, tmp_path, capsys):
    raw = recipe(backbone, image_tokenizer)
    raw["model"] = {"transformer": {"width": 64}, "head": {"num_layers": 1, "width": 16}}
    raw["tokenizers"] |= {"text": {"kind": "bpe", "vocab_size": 300}}
    (tmp_path / "plain.yaml").write_text(json.dumps(raw))
    change = ["--set", f"model.backbone={backbone}", "--set", "training.steps=1"]
    cli.main(["train", str(tmp_path / "plain.yaml"), *change, "--out", str(tmp_path / "run")])
    assert "trained:" in capsys.readouterr().out
    assert load(tmp_path / "run" / "model").model.config.transformer.width == 32


def test_a_backbone_that_is_not_there_is_one_line(image_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder, and not a hub id"):
        build_latentlm(parse_recipe(recipe("nowhere", image_tokenizer)), tmp_path, World())
