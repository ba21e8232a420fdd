"""A recipe with the mixture head, from training to answers: four pictures learnt by name."""

import json

import numpy as np
import pytest
import torch
from margins import seed

import latentlm
from latentlm.config import MixtureHeadConfig, load_recipe
from latentlm.data.embedded import emoji
from latentlm.generation.request import Request
from latentlm.model.heads import MixtureHead
from latentlm.training.logs import read_log
from latentlm.training.run import train

HEAD = {"kind": "mixture", "components": 4, "num_layers": 1, "width": 128}


def recipe(**changes):
    return load_recipe(
        "demo",
        {
            "data.sources": [{"name": "emoji", "task": "text_to_image", "limit": 4}],
            "data.rows": 2,
            "data.sequence_length": 96,
            "tokenizers.speech": None,
            "tokenizers.text": {"kind": "bytes"},
            "model.transformer": {"width": 64, "num_layers": 2, "num_heads": 2},
            "model.heads": {},
            "model.head": HEAD,
            "training.seed": seed(),
            "training.steps": 150,
            "training.global_micro_batches": 1,
            "training.max_minutes": None,
            "training.sample_every": None,
            "training.log_every": 10,
            "training.precision": "fp32",
            "training.threads": 1,
            "training.ema": 0.9,
            "training.loss_weights": {"image": 0.02},
            "training.optimizer": {"learning_rate": 0.003, "warmup_steps": 10},
        }
        | changes,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture") / "run"
    train(recipe(), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(run):
    return latentlm.load(run)


def test_the_head_is_the_recipe_s_and_is_saved_as_such(run, pipeline):
    assert json.loads((run / "model" / "config.json").read_text())["model"]["head"] == MixtureHeadConfig(
        **HEAD
    ).model_dump(mode="json")
    assert isinstance(pipeline.model.heads["image"], MixtureHead)
    raw = latentlm.load(run, weights="raw")
    assert not torch.equal(raw.model.heads["image"].out.weight, pipeline.model.heads["image"].out.weight)


def test_the_log_and_the_score_have_its_nats_per_latent(run, pipeline, margin):
    """96 channels of unit variance are 96·½·log(2πe) = 136 nats; four pictures by heart are far below zero."""
    losses = [record["losses"]["image"] for record in read_log(run / "train.jsonl")]
    margin("nats per latent, at first", losses[0], at_least=60)
    margin("nats per latent, in the end", losses[-1], at_most=-100)
    item = emoji.subset(4)[0]
    document = latentlm.Document((latentlm.Text(item.name, condition=True, loss=False), latentlm.Image(item.image)))
    margin("nats per latent of a picture", pipeline.score(document).diffusion["image"], at_most=-50)


def test_each_picture_belongs_to_its_name(pipeline, margin):
    """Of four pictures, how many are likelier under their own name than under any other; one is by chance."""
    items = emoji.subset(4)
    nats = np.array([[_nats(pipeline, name.name, picture.image) for name in items] for picture in items])
    margin("likeliest under their own name", int((nats.argmin(1) == np.arange(4)).sum()), at_least=3)


def _nats(pipeline, name: str, image) -> float:
    segments = (latentlm.Text(name, condition=True, loss=False), latentlm.Image(image))
    return pipeline.score(latentlm.Document(segments)).diffusion["image"]


def _pixels(picture) -> np.ndarray:
    return np.asarray(picture, np.float32)


def test_a_batch_of_unlike_requests_equals_each_alone(pipeline):
    names = [item.name for item in emoji.subset(4)]
    requests = [
        Request(names[0], "image", seed=1),
        Request(names[1], "image", guidance=1.0, seed=2),
        Request(names[2], "image", guidance=0.0, seed=3),
        Request(names[3], "image", guidance=4.0, seed=4, steps=7),
    ]
    for request, answer in zip(requests, pipeline.generate_batch(requests), strict=True):
        alone = _pixels(pipeline.generate_batch([request])[0].segments[0].content)
        assert np.abs(_pixels(answer.segments[0].content) - alone).max() <= 1


def test_the_seed_decides_and_nothing_else(pipeline):
    name = emoji.subset(4)[0].name
    one, other, again = (_pixels(pipeline.generate(name, to="image", seed=seed)[0]) for seed in (1, 2, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_run_of_another_head_is_not_resumed(tmp_path):
    short = {"training.steps": 1, "data.rows": 1}
    train(recipe(**short), tmp_path / "run")
    with pytest.raises(ValueError, match=r"model\.head\.components = 4, this run has 5; cannot resume"):
        train(recipe(**short, **{"model.head": HEAD | {"components": 5}}), tmp_path / "run", resume=True)
