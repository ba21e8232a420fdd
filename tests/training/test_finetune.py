"""Fine-tuning from a recipe to a loaded model: eight clips learnt by heart, whole and by LoRA (benchmarks/finetune.py).

The clips are the embedded eSpeak voice, and real recordings where ../shared has them.
"""

import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from margins import seed
from safetensors.torch import load_file
from test_trainer import start_script, wait_for_lines
from tiny_run import adapted_model, real_loader, trainer, without_clock

import latentlm
from latentlm.checkpoint import load_tokenizers
from latentlm.config import RecipeError, load_recipe, parse_recipe
from latentlm.data.cache_dir import default_cache_dir
from latentlm.data.latent_files import media_hash, read_latents
from latentlm.data.manifest import Manifest
from latentlm.training.distributed import World
from latentlm.training.latentlm import LatentLMRun, build_latentlm, document_loader, write_adapted
from latentlm.training.logs import read_log

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import finetune

NUM_CLIPS = 8


def cases():
    for clips in ("espeak", "real"):
        for way in finetune.WAYS:
            yield pytest.param((clips, way), id=f"{clips}-{way}")


pytestmark = pytest.mark.filterwarnings("ignore::latentlm.errors.Notice")  # of the real clips, at 8 kHz


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Manifest and random start of each kind of clips, made once."""
    known = {}

    def prepare(clips: str) -> tuple[Path, Path]:
        if clips not in known:
            folder = tmp_path_factory.mktemp(clips)
            found = finetune.clips(clips if clips == "espeak" else str(finetune.REAL), NUM_CLIPS)
            known[clips] = (
                finetune.write_manifest(found, folder / "data"),
                finetune.random_start(folder / "start", seed()),
            )
        return known[clips]

    return prepare


@pytest.fixture(scope="module", params=cases())
def tuned(request, places, tmp_path_factory):
    """(clips' manifest, start, run) of one way."""
    clips, way = request.param
    if clips == "espeak":
        pytest.importorskip("espeakng_loader")
    elif not finetune.REAL.is_file():
        pytest.skip(f"no recordings at {finetune.REAL}")
    else:
        pytest.importorskip("pyarrow")
    if way == "lora":
        pytest.importorskip("peft")
    manifest, start = places(clips)
    out = finetune.tune(start, manifest, tmp_path_factory.mktemp(f"{clips}-{way}"), way, seed=seed(), steps=400)
    return manifest, start, out


@pytest.mark.timeout(600)  # the first on a kind of clips trains
def test_generated_latents_match_the_cached_ones(tuned, margin):
    manifest, start, out = tuned
    before, _ = finetune.error(latentlm.load(start), manifest)
    after, right_lengths = finetune.error(latentlm.load(out), manifest)
    margin("error before", before, at_least=5 * finetune.TOLERANCE)
    margin("error after", after, at_most=1.5 * finetune.TOLERANCE)  # the benchmark holds TOLERANCE itself
    margin("clips of the right length", right_lengths, at_least=NUM_CLIPS - 2)


def test_tokenizers_stay_and_latents_are_cached_under_their_fingerprint(tuned):
    manifest, start, out = tuned
    before, after = (load_tokenizers(folder / "tokenizers") for folder in (start, out / "model"))
    assert {name: t.fingerprint() for name, t in before.items()} == {name: t.fingerprint() for name, t in after.items()}
    fingerprint = before["speech"].fingerprint()
    media = sorted(Manifest(manifest).media("speech"), key=lambda clip: clip.seconds)
    identity = {"fingerprint": fingerprint, "media": media_hash("speech", media, digits=32)}
    file = default_cache_dir() / "latents" / f"speech-{fingerprint}" / f"{identity['media']}.safetensors"
    assert len(read_latents(file, identity)) == NUM_CLIPS


def test_only_what_trains_is_in_the_checkpoint_and_the_adapter_gives_the_model(tuned):
    _, start, out = tuned
    (state,) = out.glob("checkpoints/*/state/*.safetensors")
    names = {name.partition(".")[2] for name in load_file(state)}  # of model, ema and optimizer
    weights, begun = (load_file(folder / "model.safetensors") for folder in (out / "model", start))
    if not (out / "adapter").is_dir():
        assert names > weights.keys()
        return
    assert all(".lora_" in name or name.startswith(("heads.", "embed_latents.", "text_head.")) for name in names)
    frozen = [name for name in begun if name.startswith("embed_tokens") or name.endswith("norm.weight")]
    assert all(torch.equal(begun[name], weights[name]) for name in frozen)
    merged, applied = latentlm.load(out), latentlm.load(start, adapter=out)
    for one, other in zip(merged.model.parameters(), applied.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(
        load_file(out / "model" / "ema.safetensors")["text_head.weight"], weights["text_head.weight"]
    )
    with pytest.raises(ValueError, match="trained on the averaged weights"):
        latentlm.load(start, adapter=out, weights="raw")


# --------------------------------------------------------------------------- the data


@pytest.fixture
def recipe(tmp_path, places):
    """`finetune` on two tones, from a random start."""
    import numpy as np
    from small import clip

    generator = np.random.default_rng(0)
    manifest = finetune.write_manifest(
        iter([("one", clip(generator, 9000)), ("two", clip(generator, 5000))]), tmp_path / "d"
    )
    start = finetune.random_start(tmp_path / "start", 0)

    def make(**changes):
        base = {"model.start": str(start), "data.sources": [{"manifest": str(manifest)}], "training.threads": 1}
        base |= {"data.sequence_length": 64, "data.rows": 1, "data.condition_dropout": 0.0}
        return load_recipe("finetune", base | changes)

    return make


def test_the_end_of_every_utterance_is_in_the_loss(recipe, tmp_path):
    """transformers#40546: <EOD> was no target, and fine-tuned models spoke for ever."""
    chosen = recipe()
    run = build_latentlm(chosen, tmp_path / "run", World())
    (batch,) = document_loader(chosen, run, World()).next_step()
    span = batch.latents["speech"]
    special, ends = run.model.special, batch.end_targets.flatten()
    ids = batch.ids.flatten()
    starts = (ids == special.bod["speech"]).nonzero()[:, 0]
    assert len(starts) >= 2
    for start in starts.tolist():
        length = int((ids[start:] == special.eod).nonzero()[0]) - 1
        assert ends[start : start + length + 1].tolist() == [0] * length + [1]
    assert batch.target_counts()["end"] == int(span.target.sum()) + len(starts)
    run.model.zero_grad()
    run.model(batch, torch.Generator().manual_seed(0))["end"].backward()
    assert run.model.text_head.weight.grad[[special.eod, special.proceed]].abs().sum() > 0


# --------------------------------------------------------------------------- the recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.transformer": {"width": 192}}, "model.transformer: model.start .* has its own"),
        ({"model.diffusion.target": "mean"}, "model.diffusion: model.start .* has its own"),
        ({"tokenizers.speech": "runs/mine"}, "tokenizers.speech: model.start .* has its own"),
        ({"training.loss_weights": {"speach": 1.0}}, "training.loss_weights: no loss 'speach', did you mean 'speech'?"),
        ({"training.adapter": {"rnak": 3}}, "unknown key 'training.adapter.rnak', did you mean 'rank'"),
        ({"training.adapter": {}, "training.freeze": ["heads"]}, "training: adapter and freeze exclude each other"),
        ({"training.adapter": {}, "model.start": None}, "training.adapter: needs model.start"),
    ],
)
def test_what_contradicts_is_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("finetune", changes)


def test_a_dumped_recipe_is_the_recipe():
    recipe = load_recipe("finetune", {"training.adapter": {"rank": 4}})
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(("length", "what"), [(12, "data.sequence_length is 12"), (999, "the model's context is 15")])
def test_a_document_that_is_too_long_is_named_before_training(recipe, tmp_path, length, what):
    chosen = recipe(**{"data.sequence_length": length})
    start = Path(chosen.model.start) / "config.json"
    start.write_text(start.read_text().replace('"context_length": 1024', '"context_length": 15'))
    with pytest.raises(ValueError, match=rf"clips\.jsonl:1 has 1\d positions, but {what}; only plain text is split"):
        build_latentlm(chosen, tmp_path / "run", World())


def test_the_start_must_be_the_same_when_a_run_goes_on(recipe, tmp_path, monkeypatch):
    from latentlm.training.run import train

    short = {"training.steps": 2, "training.optimizer.warmup_steps": 1, "training.freeze": ["embed_tokens"]}
    train(recipe(**short), tmp_path / "run")
    assert latentlm.load(tmp_path / "run").generate("one", "speech", steps=1, max_latents=2)
    other = finetune.random_start(tmp_path / "other", 1)
    with pytest.raises(ValueError, match=r"was made with model\.start = "):
        train(recipe(**short, **{"model.start": str(other)}), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"training.freeze = \['embed_tokens'\], this run has \['heads'\]"):
        train(recipe(**short | {"training.freeze": ["heads"]}), tmp_path / "run", resume=True)


# --------------------------------------------------------------------------- interrupted


def test_an_adapter_killed_and_resumed_is_bit_identical(tmp_path):
    """Dropout of the adapter, EMA and all: as if it had never stopped, down to what is exported."""
    pytest.importorskip("peft")
    settings = {"steps": 60, "save_every": 4, "optimizer": {"learning_rate": 0.003}}

    def run(folder):
        model, loader = adapted_model(), real_loader(2)
        run = LatentLMRun(model=model, tokenizers={}, documents=[], held_out=[], identity={"model.start": "real"})
        return trainer(folder, model, loader, **settings, write=partial(write_adapted, run))

    run(tmp_path / "whole").fit()
    log = tmp_path / "killed" / "train.jsonl"
    process = start_script(
        tmp_path / "killed",
        "steps=60",
        "save_every=4",
        "slow=0.1",
        "real=1",
        "adapter=1",
        "optimizer.learning_rate=0.003",
    )
    try:
        wait_for_lines(log, 6)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 5 < len(read_log(log)) < 60
    run(tmp_path / "killed").fit()
    assert without_clock(log) == without_clock(tmp_path / "whole" / "train.jsonl")
    for name in ("model/model.safetensors", "model/ema.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_benchmark_has_a_row_for_each_way_and_seed(tmp_path, capsys):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("peft")
    out = tmp_path / "figures.json"
    options = ["--clips", "espeak", "--num-clips", "1", "--steps", "1", "--seeds", "3", "--out", str(out)]
    assert finetune.main(options) == 0
    printed = capsys.readouterr().out
    assert set(json.loads(out.read_text())["figures"]) == {"finetune.full.seed3", "finetune.lora.seed3"}
    assert "full seed 3: error" in printed
