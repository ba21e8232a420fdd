"""What is held out is scored while a run trains: which documents, what losses, where they are written."""

import json

import numpy as np
import pytest
from small import clip, picture

from latentlm.config import parse_recipe
from latentlm.data.cache import LatentCache
from latentlm.generation.scores import Scores, bits_per_byte, mean_losses
from latentlm.media.picture import save_image
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.training.held_out import HeldOut, choose
from latentlm.training.logs import TrainLog
from latentlm.training.run import train
from latentlm.types import Document, Latents, Text

GIVEN = {"condition": True, "loss": False}


def cache_of(pipeline) -> LatentCache:
    return LatentCache({name: t for name, t in pipeline.tokenizers.items() if name != "text"})


def test_every_source_has_its_share_and_nothing_is_too_long(pipeline):
    many, few = (
        [Document((Text(f"{i:03}"),)) for i in range(200)],
        [Document((Text("b"),)), Document((Text("c" * 99),))],
    )
    chosen = choose([[many, few], [[]]][:1], cache_of(pipeline), pipeline.encoder, 20)
    texts = [document.segments[0].text for document in chosen]
    assert texts == [f"{i:03}" for i in range(0, 200, 10)] + ["b"]


def test_plain_texts_and_all_others_have_losses_of_their_own(pipeline):
    generator = np.random.default_rng(0)
    documents = [
        Document((Text("plain"),)),
        Document((Text("and more of it"),)),
        Document((Text("a", **GIVEN), Image(picture(generator)))),
        Document((Speech(clip(generator), **GIVEN), Text("said"))),
        Document((Text("b", **GIVEN), Speech(clip(generator)))),
    ]
    chosen = choose([[documents]], cache_of(pipeline), pipeline.encoder, 500)
    assert all(isinstance(s.content, Latents) for d in chosen for s in d.segments if not isinstance(s, Text))
    losses = HeldOut(pipeline, chosen)()
    scores = [pipeline.score(document) for document in documents]
    nats = scores[0].text_nats + scores[1].text_nats
    assert losses == {
        "held-out bits per byte": pytest.approx(nats / np.log(2) / len("plain and more of it".replace(" ", "", 1))),
        "held-out text": pytest.approx(scores[3].text_nats / scores[3].num_text_tokens, rel=1e-5),
        "held-out image": pytest.approx(scores[2].diffusion["image"], rel=1e-5),
        "held-out speech": pytest.approx(scores[4].diffusion["speech"], rel=1e-5),
    }
    assert losses == HeldOut(pipeline, chosen)()


def test_means_are_over_targets_not_over_documents():
    short = Scores(2.0, 1, 2, diffusion={"image": 1.0}, num_latents={"image": 1})
    long = Scores(3.0, 4, 6, diffusion={"image": 3.0}, num_latents={"image": 3})
    assert mean_losses([short, long]) == {"text": 1.0, "image": 2.5}
    assert bits_per_byte([short, long]) == {"bits per byte": pytest.approx(5 / np.log(2) / 8)}
    assert mean_losses([]) == bits_per_byte([]) == {}


def recipe_of(folder, **source):
    raw = {
        "kind": "latentlm",
        "tokenizers": {"image": "tiny"},
        "model": {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}},
        "data": {"sequence_length": 96, "rows": 1, "sources": [{"manifest": str(folder / "own.jsonl")} | source]},
        "training": {"steps": 3, "sample_every": 1, "save_every": 2, "threads": 1},
    }
    return parse_recipe(raw)


@pytest.fixture
def folder(tmp_path):
    save_image(picture(np.random.default_rng(0), 32), tmp_path / "a.png")
    line = {"segments": [{"text": "a", "condition": True}, {"image": "a.png"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "kept.jsonl").write_text(json.dumps(line) + "\n" + '{"segments": [{"text": "kept back"}]}\n')
    return tmp_path


def test_a_manifest_names_another_that_is_only_scored(folder):
    train(recipe_of(folder, held_out=str(folder / "kept.jsonl")), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(set(line["losses"]) == {"held-out bits per byte", "held-out image"} for line in lines)
    text = (folder / "run" / "model" / "tokenizers" / "text" / "tokenizer.json").read_text()
    assert "kept" not in text


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (None, "no such manifest"),
        ('{"segments": [{"image": "none.png"}]}', r"kept.jsonl:1: segments.0.image: .*none.png: no such file"),
        ('{"segments": [{"text": "a", "condition": true}]}', "kept.jsonl:1: segments: no segment is a target"),
    ],
)
def test_what_is_wrong_with_it_is_said_before_the_first_step(folder, kept, message):
    (folder / "kept.jsonl").unlink()
    if kept is not None:
        (folder / "kept.jsonl").write_text(kept + "\n")
    with pytest.raises(ValueError, match=message):
        train(recipe_of(folder, held_out=str(folder / "kept.jsonl")), folder / "run")
    assert not (folder / "run" / "checkpoints").exists()


def test_an_embedded_source_has_its_own():
    with pytest.raises(
        ValueError, match="held_out goes with a manifest, path or shards; 'digits' has its own held-out split"
    ):
        parse_recipe({"kind": "latentlm", "data": {"sources": [{"name": "digits", "held_out": "kept.jsonl"}]}})


def test_a_resumed_run_writes_every_step_once(tmp_path):
    (tmp_path / "held_out.jsonl").write_text('{"step": 4, "losses": {}}\n{"step": 8, "losses": {}}\n')
    with TrainLog(tmp_path, first_step=6, steps=10) as log:
        log.write_figures(8, {"held-out text": 1.5})
        log.write_figures(9, {})
    lines = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    assert lines == [{"step": 4, "losses": {}}, {"step": 8, "losses": {"held-out text": 1.5}}]


def test_tensorboard_has_them_too(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TrainLog(tmp_path, first_step=0, steps=10, tensorboard=True) as log:
        log.write_figures(5, {"held-out bits per byte": 1.5})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("held_out/held-out_bits_per_byte")] == [(5, 1.5)]
