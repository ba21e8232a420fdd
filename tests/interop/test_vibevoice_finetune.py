"""A VibeVoice in the layout of `transformers`, converted, then fine-tuned by the recipe: full and by LoRA."""

import json
from pathlib import Path

import pytest
import torch
from margins import seed
from safetensors.torch import load_file

pytest.importorskip("transformers")
from tiny_vibevoice import HOP, build, save

import latentlm
from latentlm.checkpoint import load_tokenizers
from latentlm.config import load_recipe
from latentlm.data.cache import LatentCache
from latentlm.interop.convert import Conversion, convert
from latentlm.media.sound import Audio, load_audio, save_audio
from latentlm.training.distributed import World
from latentlm.training.latentlm import build_latentlm, document_loader
from latentlm.training.logs import read_log
from latentlm.training.run import train

STEPS = 40
WAYS = {"full": None, "lora": {"rank": 8}}
CONNECTORS = ("embed_latents.", "embed_features.")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vibevoice")
    convert(Conversion(str(save(build(), folder / "theirs"))), folder / "ours", "vibevoice")
    return folder / "ours"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three utterances, one of them with a clip of its speaker, one of two speakers."""
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    for number, num_latents in enumerate((25, 30, 20)):
        sound = torch.randn(num_latents * HOP, generator=generator).mul(0.1).clamp(-1, 1)
        save_audio(Audio(sound, 24000), folder / f"{number}.wav")
    lines = [
        [{"text": "One.", "condition": True}, {"speech": "0.wav"}],
        [{"speech": "0.wav", "condition": True}, {"text": "Two.", "condition": True}, {"speech": "1.wav"}],
        [{"text": "Speaker 1: Who?\nSpeaker 2: Me.", "condition": True}, {"speech": "2.wav"}],
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps({"segments": line}) + "\n" for line in lines))
    return folder / "clips.jsonl"


def recipe(start: Path, manifest: Path, **changes):
    base = {"model.start": str(start), "data.sources": [{"manifest": str(manifest)}], "training.precision": "fp32"}
    base |= {
        "training.seed": seed(),
        "data.rows": 1,
        "data.sequence_length": 900,
        "training.steps": STEPS,
        "training.threads": 1,
    }
    base |= {"training.log_every": 1, "training.optimizer.learning_rate": 0.003}
    return load_recipe("finetune", base | changes)


@pytest.fixture(scope="module", params=WAYS)
def tuned(request, start, manifest, tmp_path_factory):
    if request.param == "lora":
        pytest.importorskip("peft")
    out = tmp_path_factory.mktemp(request.param)
    train(recipe(start, manifest, **{"training.adapter": WAYS[request.param]}), out)
    return out


def test_the_losses_are_finite_and_fall(tuned, margin):
    records = read_log(tuned / "train.jsonl")
    assert len(records) == STEPS
    for name in ("speech", "end", "text"):
        losses = torch.tensor([record["losses"][name] for record in records])
        assert losses.isfinite().all()
        margin(f"{name}, the last 10 over the first 5", losses[-10:].mean() / losses[:5].mean(), at_most=0.8)


def test_tokenizers_are_frozen_and_both_connectors_learn(tuned, start):
    before, after = (load_tokenizers(folder / "tokenizers") for folder in (start, tuned / "model"))
    assert before.keys() == {"text", "speech", "semantic"}
    assert {name: t.fingerprint() for name, t in before.items()} == {name: t.fingerprint() for name, t in after.items()}
    begun, ended = (load_file(folder / "model.safetensors") for folder in (start, tuned / "model"))
    changed = {name for name, value in begun.items() if not torch.equal(value, ended[name])}
    for part in (*CONNECTORS, "heads.speech.", "transformer."):
        assert any(name.startswith(part) for name in changed), part
    if (tuned / "adapter").is_dir():
        assert not any(name.startswith(("embed_tokens", "text_head")) for name in changed)


def test_the_result_speaks(tuned, manifest):
    voices = {1: load_audio(manifest.parent / "0.wav")}
    options = {"voices": voices, "guidance": 1.3, "steps": 3, "max_latents": 12}
    (said,) = latentlm.load(tuned).generate("Speaker 1: Two.", "speech", **options)
    assert said.sample_rate == 24000
    assert len(said.samples) > 0
    assert len(said.samples) % HOP == 0
    assert said.samples.isfinite().all()


def test_what_it_learns_from_begins_as_the_prompts_it_answers(start, manifest, tmp_path):
    """A model that reads scripts must not be tuned on bare words."""
    pipeline = latentlm.load(start)
    run = build_latentlm(recipe(start, manifest), tmp_path / "run", World())
    learnt = pipeline.encoder(run.documents[0][1])
    cache = LatentCache({name: t for name, t in pipeline.tokenizers.items() if name != "text"})
    asked = cache.resolve(pipeline.prompt("Two.", "speech", load_audio(manifest.parent / "0.wav")))
    prompt = pipeline.encoder(asked, closed=False)
    pipeline.encoder.open_span(prompt, "speech")
    assert learnt.ids[: len(prompt)] == prompt.ids
    assert [len(span.latents) for span in learnt.spans] == [25, 30]
    assert [span.latents.features is not None for span in learnt.spans] == [False, True]
    assert learnt.text_targets[-1] == pipeline.model.special.eos


def test_no_position_of_a_span_may_start_another_or_end_the_document(start, manifest, tmp_path):
    """Generation chooses among four tokens there, so the loss does."""
    chosen = recipe(start, manifest)
    run = build_latentlm(chosen, tmp_path / "run", World())
    (batch,) = document_loader(chosen, run, World()).next_step()
    run.model.zero_grad()
    run.model(batch, torch.Generator().manual_seed(0))["end"].backward()
    special = run.model.special
    moved = run.model.text_head.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert moved == sorted({special.proceed, special.eod, special.bod["speech"], special.eos})


def test_an_adapter_that_names_the_parts_leaves_the_others(start, manifest, tmp_path):
    pytest.importorskip("peft")
    run = build_latentlm(recipe(start, manifest, **{"training.adapter": {"full": ["heads"]}}), tmp_path, World())
    trained = {name for name, value in run.model.named_parameters() if value.requires_grad}
    assert not any(name.startswith(CONNECTORS) for name in trained)
    assert any(name.startswith("heads.") for name in trained)
