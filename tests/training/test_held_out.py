"""What is held out is scored while a run trains: which documents, what losses, where they are written."""

import json

import numpy as np
import pytest
from small import clip, picture

from latentlm.config import SourceConfig, parse_recipe
from latentlm.data.cache import LatentCache
from latentlm.data.sources import media
from latentlm.generation.scores import Scores, bits_per_byte, mean_losses
from latentlm.media.picture import save_image
from latentlm.media.sound import save_audio
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
        ValueError, match="held_out is for a manifest, path or shards; 'digits' has its own held-out split"
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


def tokenizer_recipe(kind, tokenizer, source, **data):
    return parse_recipe(
        {
            "kind": kind,
            "tokenizer": tokenizer,
            "data": {"sources": [source], "batch_size": 2} | data,
            "training": {"steps": 4, "sample_every": 2, "threads": 1, "precision": "fp32"},
        }
    )


PICTURES = {"image_size": 32, "patch_size": 16, "latent_dim": 4, "width": 16, "num_heads": 2}


def test_a_tokenizer_is_scored_on_another_manifest(folder):
    source = {"manifest": str(folder / "own.jsonl"), "held_out": str(folder / "kept.jsonl")}
    train(tokenizer_recipe("image_tokenizer", PICTURES, source), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[0]["losses"]) == {"held-out mse", "held-out prior"}


def test_a_tokenizer_of_an_embedded_source_is_scored_on_its_held_out_split(tmp_path):
    train(tokenizer_recipe("image_tokenizer", PICTURES, {"name": "digits", "limit": 20}), tmp_path / "run")
    assert (tmp_path / "run" / "held_out.jsonl").is_file()


def test_without_held_out_media_a_tokenizer_has_no_scores(folder):
    source = {"manifest": str(folder / "own.jsonl")}
    train(tokenizer_recipe("image_tokenizer", PICTURES, source), folder / "run")
    assert not (folder / "run" / "held_out.jsonl").exists()
    assert (folder / "run" / "samples").is_dir()


def test_clips_are_scored_too(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("own", "kept"):
        save_audio(clip(generator), tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"segments": [{"speech": f"{name}.wav"}]}) + "\n")
    small = {"sample_rate": 8000, "strides": (4, 4), "depths": (1, 1, 1), "channels": 4, "max_channels": 8}
    source = {"manifest": str(tmp_path / "own.jsonl"), "held_out": str(tmp_path / "kept.jsonl")}
    recipe = tokenizer_recipe("speech_tokenizer", small | {"latent_dim": 4}, source, seconds=0.1)
    train(recipe, tmp_path / "run")
    line = json.loads((tmp_path / "run" / "held_out.jsonl").read_text().splitlines()[-1])
    assert {"held-out mel", "held-out stft"} <= set(line["losses"])


@pytest.mark.parametrize("held_out", [2, 0.25])
def test_documents_of_a_path_that_are_held_out_are_the_media_that_are_scored(tmp_path, held_out):
    generator = np.random.default_rng(0)
    lines = []
    for number in range(8):
        save_image(picture(generator, 32), tmp_path / f"{number}.png")
        lines.append(json.dumps({"segments": [{"image": f"{number}.png"}]}) + "\n")
    (tmp_path / "own.jsonl").write_text("".join(lines))
    for path in (tmp_path / "own.jsonl", tmp_path):
        config = SourceConfig(path=str(path), held_out=held_out)
        kept, learnt = media(config, "image", "held_out"), media(config, "image", "train")
        assert (len(kept), len(learnt)) == (2, 6)
        seen = {item.tobytes() for item in kept}
        assert len(seen) == 2
        assert seen.isdisjoint(item.tobytes() for item in learnt)
    other = SourceConfig(path=str(tmp_path), held_out=str(tmp_path / "own.jsonl"))
    assert len(media(other, "image", "held_out")) == 8
