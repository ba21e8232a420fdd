"""What a list means, and that both faces take the same options and give the same types."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from small import small_model

import latentlm
from latentlm import Audio, Document, Image, Request, Text, UserError
from latentlm.data.script import Script, Turn
from latentlm.errors import Notice
from latentlm.generation.batch import split_prompts
from latentlm.generation.pipeline import Pipeline, load
from latentlm.modalities.speech import Speech
from latentlm.types import GenerationOutput

PICTURE = Pillow.new("RGB", (8, 8), "red")
DOCUMENT = Document((Text("a"),))
SCRIPT = Script((Turn("1", "a"),))


@pytest.mark.parametrize(
    "prompts",
    [["a"], ["a", "b"], ("a", "b"), [DOCUMENT, "b"], [["a", PICTURE], "b", [PICTURE]], [["a", "b"]], [SCRIPT, SCRIPT]],
)
def test_a_list_of_whole_prompts_is_a_batch(prompts):
    assert split_prompts(prompts) == list(prompts)


@pytest.mark.parametrize(
    "prompt",
    ["a", PICTURE, DOCUMENT, SCRIPT, Path("a.png"), [PICTURE], [PICTURE, "how many? "], [Path("a.png"), Path("b.png")]],
)
def test_anything_else_is_one_prompt(prompt):
    assert split_prompts(prompt) == [prompt]


@pytest.mark.parametrize("prompt", [[DOCUMENT, PICTURE], ["a", PICTURE, ["b"]]])
def test_a_list_of_both_is_refused(prompt):
    with pytest.raises(UserError, match="a list holds either prompts or the parts of one prompt, here a"):
        split_prompts(prompt)


def test_an_empty_list_is_refused(pipeline):
    with pytest.raises(UserError, match="the list of prompts is empty"):
        pipeline.generate([])


def test_a_batch_gives_each_prompt_what_it_gets_alone(pipeline):
    options = {"to": "image", "steps": 2, "num": 2, "seed": 3}
    both = pipeline.generate(["a", ["b", PICTURE]], **options)
    alone = pipeline.generate("a", **options) + pipeline.generate([Text("b"), PICTURE], **options)
    assert len(both) == 4
    for one, two in zip(both, alone, strict=True):
        assert abs(np.asarray(one, np.int16) - np.asarray(two, np.int16)).max() <= 1


def test_the_parts_of_one_prompt_give_one_answer(pipeline):
    assert len(pipeline.generate([PICTURE], to="text", max_tokens=1)) == 1
    assert len(pipeline.generate([PICTURE, "how many? "], to="text", max_tokens=1)) == 1


def test_a_request_has_one_prompt(pipeline):
    with pytest.raises(UserError, match="a Request has one prompt, not a list of texts"):
        pipeline.generate_batch([Request(["a", "b"], "text")])
    with pytest.raises(UserError, match="a Request has one prompt"):
        next(pipeline.stream(Request(["a", "b"], "text")))


def test_words_that_are_the_name_of_a_file(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PICTURE.save("apple.png")
    for prompt in ("apple.png", ["apple.png", PICTURE], ["b", "apple.png"]):
        with pytest.warns(Notice, match=r"'apple.png' is read as words; .* pass pathlib.Path\('apple.png'\)$"):
            pipeline.generate(prompt, to="text", max_tokens=1)
    pipeline.generate(["missing.png", Path("apple.png")], to="text", max_tokens=1)


def test_auto_gives_the_types_that_each_target_gives(pipeline, monkeypatch):
    said = Audio(torch.zeros(4), 16000)
    output = GenerationOutput((Text("see "), Image(PICTURE), Speech(said)), "stop")
    monkeypatch.setattr(pipeline, "generate_batch", lambda requests: [output])
    assert pipeline.generate("a", to="auto") == [["see ", PICTURE, said]]


def test_a_stream_gives_the_types_that_generate_gives(pipeline):
    (piece,) = pipeline.stream(Request("a", "image", steps=2))
    assert isinstance(piece, Pillow.Image)


def test_several_texts_at_temperature_0_would_be_one(pipeline):
    with pytest.raises(UserError, match="at temperature 0 all 3 texts would be the same; give a temperature"):
        pipeline.generate("a", to="text", num=3)
    assert len(pipeline.generate("a", to="text", num=2, temperature=1.0, max_tokens=1)) == 2


def test_no_seed_is_a_new_one_each_time(pipeline):
    options = {"to": "image", "steps": 1, "guidance": 1}
    one, two = (np.asarray(pipeline.generate("a", seed=None, **options)[0]) for _ in range(2))
    assert not np.array_equal(one, two)
    same, again = pipeline.generate_batch([Request("a", seed=None, **options)] * 2)
    assert not np.array_equal(np.asarray(same.segments[0].content), np.asarray(again.segments[0].content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "^seed must be a whole number, got 1.5"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"num": 2.0}, "num must be a whole number, got 2.0"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"max_latents": 1.5}, "max_latents must be a whole number, got 1.5"),
        ({"max_tokens": None, "temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"guidance": "2"}, "guidance must be a number, got '2'"),
        ({"max_seconds": 1}, "max_seconds has no meaning for image; it is for speech"),
        ({"to": "speech", "max_seconds": 0}, "max_seconds must be above 0, got 0"),
        ({"to": "speech", "max_seconds": float("nan")}, "max_seconds must be a number from 0 on, got nan"),
        ({"to": "speech", "max_seconds": 1, "max_latents": 3}, "max_seconds and max_latents set the same limit"),
        ({"to": None}, "unknown target None"),
    ],
)
def test_wrong_values_are_named(pipeline, options, message):
    with pytest.raises(UserError, match=message):
        pipeline.generate("a", **({"to": "image"} | options))


def test_numbers_of_numpy_are_numbers(pipeline):
    options = {"steps": np.int64(1), "seed": np.int64(3), "guidance": np.float32(1), "num": np.int64(1)}
    assert len(pipeline.generate("a", to="image", **options)) == 1


def test_a_model_without_speech_has_no_seconds(tokenizers):
    silent = {name: tokenizers[name] for name in ("text", "image")}
    with pytest.raises(UserError, match="max_seconds is for speech, and this model has none"):
        Pipeline(small_model(silent).eval(), silent).generate("a", to="auto", max_seconds=1)


def test_seconds_and_latents_are_one_limit(pipeline, monkeypatch):
    limits, make = [], pipeline._active_requests
    monkeypatch.setattr(
        pipeline, "_active_requests", lambda requests: limits.append((made := make(requests))[0].max_latents) or made
    )
    rate = pipeline.tokenizers["speech"].rate
    for options in ({"max_seconds": 3 / rate}, {"max_latents": 3}):
        pipeline.generate("a", to="speech", steps=1, **options)
    assert limits == [3, 3]


@pytest.mark.parametrize("given", [{}, {"device": "cpu"}, {"dtype": "bf16"}, {"dtype": torch.bfloat16}])
def test_a_model_is_loaded_as_the_command_line_loads_it(given, monkeypatch):
    asked = {}
    monkeypatch.setattr("latentlm.generation.pipeline.load_pipeline", lambda folder, **options: asked.update(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    load("tiny", **given)
    on_cpu = given.get("device") == "cpu"
    assert asked["device"] == torch.device("cpu" if on_cpu else "cuda")
    assert asked["dtype"] == (torch.float32 if on_cpu else torch.bfloat16)


def test_an_unknown_dtype_is_named():
    with pytest.raises(UserError, match=r"unknown dtype 'fp8' \(known: auto, fp32, bf16\)"):
        latentlm.load("tiny", dtype="fp8")


def test_a_score_has_a_whole_seed_too(pipeline):
    with pytest.raises(UserError, match=r"^seed must be a whole number, got 1.5$"):
        pipeline.score("a", seed=1.5)
