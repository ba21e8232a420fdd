"""What cannot work is refused when a recipe is read, in one line that names the key."""

from typing import get_args

import pytest

from latentlm.config import (
    Config,
    DiffusionHeadConfig,
    MixtureHeadConfig,
    ModelConfig,
    RecipeError,
    load_recipe,
    parse_recipe,
)
from latentlm.config.kinds import KINDS
from latentlm.config.modalities import tokenizer_kinds


@pytest.mark.parametrize(
    ("recipe", "key", "value", "message"),
    [
        ("demo", "data.sources", [], "data.sources: List should have at least 1 item"),
        ("demo", "data.rows", 0, "data.rows: Input should be greater than 0, got '0'"),
        ("demo", "data.sequence_length", -1, "data.sequence_length: "),
        ("demo", "model.transformer.num_layers", 0, "model.transformer.num_layers: "),
        ("demo", "model.transformer.ffn_width", 0, "model.transformer.ffn_width: "),
        (
            "demo",
            "model.transformer.num_kv_heads",
            3,
            "model.transformer: num_heads 4 is not a multiple of num_kv_heads 3",
        ),
        ("demo", "model.transformer.width", 190, "model.transformer: width 190 is not a multiple of num_heads 4"),
        ("demo", "model.transformer.width", 20, "model.transformer: head_dim 5 is odd"),
        ("demo", "model.transformer.head_dim", 31, "model.transformer: head_dim 31 is odd"),
        ("demo", "model.heads.image.width", 0, "model.heads.image.width: "),
        ("demo", "model.head", {"kind": "mixture", "components": 0}, "model.head.components: "),
        ("demo", "model.head", "mixture", "model.head: Input should be a valid dictionary"),
        ("demo", "model.heads.image", {"kind": "mixture", "temperature": 0}, "model.heads.image.temperature: "),
        ("demo", "model.diffusion.num_timesteps", 0, "model.diffusion.num_timesteps: "),
        ("demo", "model.sampling.guidance", -1, "model.sampling.guidance: Input should be greater than or equal to 0"),
        ("demo", "training.loss_weights.text", -1, "training.loss_weights.text: "),
        ("demo", "training.optimizer.betas", [0.9, 1.0], "training.optimizer.betas.1: "),
        ("demo", "training.max_minutes", float("inf"), "training.max_minutes: Input should be a finite number"),
        ("demo", "training.seed", -1, "training.seed: "),
        ("tiny_image", "data.batch_size", 0, "data.batch_size: "),
        ("tiny_image", "data.sources", [], "data.sources: "),
        ("tiny_image", "tokenizer.patch_size", 0, "tokenizer.patch_size: "),
        ("tiny_image", "losses.mse", -1, "losses.mse: "),
        ("tiny_speech", "tokenizer.strides", [0], "tokenizer.strides.0: "),
        ("tiny_speech", "tokenizer.latent_dim", 0, "tokenizer.latent_dim: "),
    ],
)
def test_a_number_out_of_bounds_is_named(recipe, key, value, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, {key: value})
    assert str(error.value).startswith(f"{recipe}: {message}")
    assert "\n" not in str(error.value)
    assert "{" not in str(error.value), "a section is not repeated"


@pytest.mark.parametrize(
    ("section", "value", "path", "known"),
    [
        ("model.heads", {"image": {"widht": 1}}, "model.heads.image.widht", "width"),
        ("model.heads", {"diffusion": {"widht": 1}}, "model.heads.diffusion.widht", "width"),  # a modality of that name
        ("model.heads", {"image": {"kind": "mixture", "num_layer": 1}}, "model.heads.image.num_layer", "num_layers"),
        ("model.head", {"kind": "mixture", "componets": 1}, "model.head.componets", "components"),
        ("model.head", {"widht": 1}, "model.head.widht", "width"),
        ("model.diffusion", {"timesteps": 1}, "model.diffusion.timesteps", "num_timesteps"),
        ("model.transformer.rope_scaling", {"facto": 1}, "model.transformer.rope_scaling.facto", "factor"),
        ("data.sources", [{"name": "digits", "warped_copy": 1}], "data.sources.0.warped_copy", "augmented_copies"),
        ("tokenizers.text", {"knd": "bpe"}, "tokenizers.text.knd", "kind"),
    ],
)
def test_the_nearest_key_is_named_inside_dicts_tuples_and_unions_too(section, value, path, known):
    with pytest.raises(RecipeError) as error:
        load_recipe("demo", {section: value})
    assert str(error.value) == f"demo: unknown key {path!r}, did you mean {known!r}?"


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("model.head", {"kind": "mixtur"}, "model.head.kind: no kind 'mixtur', did you mean 'mixture'?"),
        (
            "model.heads",
            {"image": {"kind": None}},
            "model.heads.image.kind: no kind 'None' (known: diffusion, mixture)",
        ),
        ("model.head", {"kind": "mixture", "latent_bias": True}, "unknown key 'model.head.latent_bias' (known: kind, "),
        ("model.head", {"components": 8}, "unknown key 'model.head.components' (known: kind, "),
    ],
)
def test_a_head_s_kind_that_is_wrong_or_missing_is_named(section, value, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("demo", {section: value})
    assert str(error.value).startswith(f"demo: {message}")


def test_a_head_without_a_kind_is_a_diffusion_head_and_is_written_as_ever():
    old = {"head": {"num_layers": 2}, "heads": {"image": {"width": 48}}}
    config = ModelConfig.model_validate(old)
    assert config.head == DiffusionHeadConfig(num_layers=2)
    assert ModelConfig.model_validate({"head": {"kind": "diffusion", "num_layers": 2}}).head == config.head
    written = config.model_dump(mode="json")
    assert "kind" not in written["head"]
    assert "kind" not in written["heads"]["image"]
    mixed = ModelConfig.model_validate(old | {"heads": {"image": {"kind": "mixture", "components": 4}}})
    assert mixed.heads["image"] == MixtureHeadConfig(components=4)
    assert ModelConfig.model_validate(mixed.model_dump(mode="json")) == mixed
    assert ModelConfig.model_validate_json(mixed.model_dump_json()) == mixed


def test_a_recipe_is_utf_8_and_one_that_is_not_is_named(tmp_path):
    text = "kind: image_tokenizer\ndescription: größer\ntokenizer: {}\ndata: {sources: [{name: digits}]}\n"
    (tmp_path / "mine.yaml").write_bytes(text.encode())
    assert load_recipe(tmp_path / "mine.yaml").description == "größer"
    (tmp_path / "mine.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"mine\.yaml: not UTF-8 text at byte 37"):
        load_recipe(tmp_path / "mine.yaml")


def test_one_entry_of_a_list_can_be_changed():
    changed = load_recipe("demo", {"data.sources.1.weight": 3, "data.sources.2.limit": None}).data.sources
    plain = load_recipe("demo").data.sources
    assert changed[1] == plain[1].model_copy(update={"weight": 3.0})
    assert changed[2].limit is None
    assert changed[3:] == plain[3:]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data.sources.99.weight", "there is no entry '99'; the 10 entries count from 0"),
        ("data.sources.first.weight", "there is no entry 'first'"),
        ("description.a", "'description' has no key 'a', it is 'digits"),
    ],
)
def test_an_override_of_what_is_not_there_is_named(key, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", {key: 1})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (None, "r.yaml: kind: missing; one of latentlm, image_tokenizer, speech_tokenizer$"),
        ("latentml", "r.yaml: kind: no kind 'latentml', did you mean 'latentlm'\\?; one of latentlm"),
    ],
)
def test_a_kind_that_is_missing_or_misspelt_is_one_line(kind, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"data": {}} | ({"kind": kind} if kind else {}), "r.yaml")


def test_a_list_is_called_a_list():
    with pytest.raises(RecipeError, match=r"data.sources: List should have at least 1 item"):
        parse_recipe({"kind": "latentlm", "data": {"sources": []}})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "give one of name (an embedded source), manifest (a JSONL path), path or shards"),
        ({"path": "a.tar", "shards": "b"}, "give one of name"),
        ({"name": "digits", "held_out": 3}, "held_out is for a manifest, path or shards; 'digits' has its own"),
        ({"manifest": "a.jsonl", "held_out": 3}, "held_out of a manifest must be another manifest, not 3"),
        ({"path": "a.tar", "held_out": 0}, "held_out is a path, a number of documents or a share below 1, not 0"),
        ({"path": "a.tar", "held_out": 1.5}, "a share below 1, not 1.5"),
        ({"shards": "a", "columns": {"image": "x"}}, "columns is only for path, not for 'a'"),
        ({"path": "a.parquet", "columns": {"imag": "x"}}, "columns: no column 'imag', did you mean 'image'?"),
        ({"shards": "a", "task": "text"}, "shards a: the task was chosen when they were encoded"),
        ({"path": "a.tar", "augmented_copies": 2}, "augmented_copies keeps all pictures in memory"),
    ],
)
def test_a_source_is_one_place_with_the_keys_that_go_with_it(source, said):
    with pytest.raises(RecipeError) as error:
        parse_recipe({"kind": "latentlm", "data": {"sources": [source]}})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "key", "known"),
    [
        ("demo", "training.schedule", "'training.optimizer.schedule'"),
        ("demo", "training.learning_rate", "'training.optimizer.learning_rate'"),
        ("demo", "training.learning_rat", "'training.optimizer.learning_rate'"),
        ("demo", "training.rows", "'data.rows'"),
        ("demo", "data.weight", "'data.sources.0.weight'"),
        ("demo", "data.sources.1.sequence_length", "'data.sequence_length'"),
        ("demo", "steps", "'model.sampling.steps' or 'training.steps'"),
        ("demo", "model.width", "'model.transformer.width' or 'model.head.width'"),
        ("demo", "data.batch_sise", None),
        ("demo", "tokenizers.vocab_size", "'text.vocab_size'"),
        ("tiny_image", "tokenizer.c_sigma", "'tokenizer.posterior.c_sigma'"),
        ("tiny_image", "training.batch_size", "'data.batch_size'"),
        ("tiny_image", "training.log_evry", "'log_every'"),
    ],
)
def test_a_key_of_another_section_is_found(recipe, key, known):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, {key: 1})
    said = f", did you mean {known}?" if known else " (known: sources, sequence_length"
    assert said in str(error.value)


def test_every_key_of_every_recipe_says_what_it_is():
    models, todo = [], [spec.config for spec in KINDS.values()] + [config for config, _ in tokenizer_kinds().values()]
    while todo:
        model = todo.pop()
        if model not in models:
            models.append(model)
            todo += [section for field in model.model_fields.values() for section in sections(field.annotation)]
    silent = [f"{m.__name__}.{name}" for m in models for name, field in m.model_fields.items() if not field.description]
    assert silent == []
    assert len(models) > 15


def sections(annotation):
    """The configurations that occur in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [section for member in get_args(annotation) for section in sections(member)]
