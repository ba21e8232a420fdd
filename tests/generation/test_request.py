"""Requests: what they leave open is the model's own, what is wrong with them is named."""

import numpy as np
import pytest
from small import small_model

from latentlm import Request
from latentlm.generation.pipeline import Pipeline
from latentlm.generation.prompts import as_prompt


def test_less_than_one_answer_is_refused(pipeline):
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        pipeline.generate("a", "image", num=0)


def test_a_large_guidance_is_the_users_choice(pipeline):
    assert pipeline.generate("a", "image", steps=2, guidance=1e4)


def test_guidance_may_be_a_whole_number(pipeline):
    whole, same = (pipeline.generate("a", "image", steps=3, guidance=scale)[0] for scale in (2, 2.0))
    assert np.array_equal(np.asarray(whole), np.asarray(same))


@pytest.mark.parametrize("to", ["image", "speech", "auto"])
def test_a_model_is_sampled_as_its_config_says_unless_told_otherwise(tokenizers, to, monkeypatch):
    model = small_model(tokenizers)
    own = model.config.sampling.model_copy(update={"guidance": 3.0, "steps": 4, "solver": "ddim"})
    model.config = model.config.model_copy(update={"sampling": own})
    built, seen = Pipeline(model.eval(), tokenizers), []
    make = built._active_requests
    monkeypatch.setattr(built, "_active_requests", lambda requests: seen.extend(made := make(requests)) or made)
    for options in ({}, {"guidance": 1.5, "steps": 2, "solver": "euler"}):
        built.generate("a", to, max_latents=2, max_tokens=2, **options)
    built.generate("a", "text", max_tokens=2)
    assert [(request.guidance, request.steps) for request in seen] == [(3.0, 4), (1.5, 2), (1.0, 4)]
    assert [request.solver for request in seen] == ["ddim", "euler", "ddim"]


def test_a_model_of_text_alone_says_what_it_has(tokenizers):
    plain = {"text": tokenizers["text"]}
    with pytest.raises(ValueError, match=r"^this model has no image; it has text$"):
        Pipeline(small_model(plain).eval(), plain).generate("a", "image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "imag"}, "unknown target 'imag', did you mean 'image'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be a number from 0 on, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a number from 0 on, got nan"),
        ({"guidance": float("inf")}, "guidance must be a number from 0 on, got inf"),
        ({"guidance": float("nan")}, "guidance must be a number from 0 on, got nan"),
        ({"guidance": -1}, "guidance must be a number from 0 on, got -1"),
        ({"to": "text", "guidance": -1.0}, "guidance must be a number from 0 on, got -1.0"),
        ({"prompt": as_prompt("x" * 2000)}, "the prompt has 2002 positions, the context is 1024"),
        ({"prompt": as_prompt("x" * 1020)}, "the prompt has 1022 positions and the image 4, the context is 1024"),
        ({"to": "text", "guidance": 2.0}, "guidance 2.0 has no meaning for text"),
        ({"solver": "dpm"}, r"solver 'dpm' is unknown, did you mean 'dpm\+\+2m'"),
    ],
)
def test_bad_requests_are_named(pipeline, change, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate_batch([Request(**({"prompt": as_prompt("a"), "to": "image"} | change))])
