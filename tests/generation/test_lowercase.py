"""`model.lowercase`: capitals in given texts mean nothing to a model whose training texts have none."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow
from small import small_model

from latentlm import Document, Image, Request, Text, load
from latentlm.checkpoint import build_from_config, write_config
from latentlm.config import load_recipe
from latentlm.data.packing import DocumentEncoder
from latentlm.data.sources import documents
from latentlm.generation.pipeline import Pipeline

PICTURE = Pillow.new("RGB", (8, 8), "red")


@pytest.fixture(scope="module")
def lowercase(tokenizers) -> Pipeline:
    model = small_model(tokenizers).eval()
    model.config = model.config.model_copy(update={"lowercase": True})
    return Pipeline(model, tokenizers)


def given(text: str) -> Text:
    return Text(text, condition=True, loss=False)


def ids(pipeline: Pipeline, prompt, to: str) -> list[int]:
    (task,) = pipeline._active_requests([Request(prompt, to)])
    return task.prompt.ids


def test_prompts_beside_media_are_lower_case_and_plain_text_is_not(lowercase, pipeline):
    for to in ("image", "speech"):
        assert ids(lowercase, "Red Apple", to) == ids(pipeline, "red apple", to)
    assert ids(lowercase, [PICTURE, "How Many? "], "text") == ids(pipeline, [PICTURE, "how many? "], "text")
    assert ids(lowercase, "We the People", "text") == ids(pipeline, "We the People", "text")
    assert ids(pipeline, "Red Apple", "image") != ids(pipeline, "red apple", "image")


def test_training_reads_given_texts_in_lower_case_and_learns_targets_as_they_are(tokenizers):
    posterior = tokenizers["image"].encode([PICTURE])[0]
    encode = DocumentEncoder(tokenizers["text"], lowercase=True)
    plain = DocumentEncoder(tokenizers["text"])
    drawing = [Document((given(text), Image(posterior))) for text in ("Red Apple", "red apple")]
    assert encode(drawing[0]).ids == plain(drawing[1]).ids
    caption = Document((Image(posterior, condition=True, loss=False), Text("Red Apple")))
    assert encode(caption).ids == plain(caption).ids
    prose = Document((given("We the"), Text(" People")))
    assert encode(prose).ids == plain(prose).ids


def test_tiny_draws_the_same_with_capitals():
    model = load("tiny", device="cpu")
    one, two = (model.generate(text, to="image", steps=2)[0] for text in ("Red Apple", "red apple"))
    assert np.array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_no_given_text_of_the_packaged_recipes_has_a_capital(name):
    """So that training with `lowercase` is what it was without."""
    recipe = load_recipe(name)
    assert recipe.model.lowercase
    for source in recipe.data.sources:
        if source.task == "text_to_speech_in_voice":  # the words of the other speech; a list of them needs all clips
            continue
        if "speech" in source.task:
            pytest.importorskip("espeakng_loader")
        found = documents(source.model_copy(update={"limit": source.limit or 200}), "train")
        for number in range(0, len(found), max(1, len(found) // 50)):
            texts = [s.text for s in found[number].segments if isinstance(s, Text) and s.condition]
            assert texts == [text.lower() for text in texts]


def test_models_saved_without_the_key_read_prompts_as_they_are(tmp_path, tokenizers):
    write_config(tmp_path, small_model(tokenizers), tokenizers)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["lowercase"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert build_from_config(tmp_path, tokenizers["text"]).config.lowercase is False
