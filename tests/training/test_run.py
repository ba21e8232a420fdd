"""`train` from a recipe: what is stopped early is not passed off as trained, and goes on later."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from latentlm import cli
from latentlm.config import (
    MediaConfig,
    RecipeError,
    SourceConfig,
    SpeechTokenizerConfig,
    SpeechTokenizerRecipe,
    load_recipe,
    parse_recipe,
)
from latentlm.data import examples
from latentlm.media.picture import load_image
from latentlm.media.sound import Audio, load_audio, save_audio
from latentlm.tokenizers.load import load_tokenizer
from latentlm.training import run as module
from latentlm.training.distributed import World
from latentlm.training.latentlm import build_latentlm, document_loader
from latentlm.training.logs import read_log
from latentlm.training.run import STOPPED, ProcessFailed, train
from latentlm.training.tokenizer import build_tokenizer, media_loader, recipe_media
from latentlm.training.trainer import Trainer


def recipe(**training):
    return parse_recipe(
        {
            "kind": "image_tokenizer",
            "tokenizer": {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2},
            "data": {"sources": [{"name": "digits", "limit": 64}], "batch_size": 8},
            "training": {"steps": 6, "log_every": 1, **training},
        }
    )


def test_a_tokenizer_is_trained_calibrated_and_saved(tmp_path):
    folder = train(recipe(), tmp_path / "run")
    assert load_tokenizer(folder).latent_std > 0
    assert read_log(tmp_path / "run/train.jsonl")[-1]["examples"] == 6 * 8
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["kind"] == "image_tokenizer"
    with pytest.raises(ValueError, match="already holds a run"):
        train(recipe(), tmp_path / "run")


def test_a_finished_tokenizer_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    folder = train(recipe(ema=0.5), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"config.json", "model.safetensors"}

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentlm.tokenizers.image.ImageTokenizer.calibrate", fails)
    with pytest.raises(OSError, match="No space left"):
        train(recipe(ema=0.5, steps=8), tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_tokenizer_is_kept_with_its_averaged_weights_and_their_normalisation(tmp_path):
    wanted = recipe(ema=0.9, optimizer={"learning_rate": 0.03, "warmup_steps": 0})
    folder = train(wanted, tmp_path / "run")
    state, kept = {}, load_file(folder / "model.safetensors")
    for path in (tmp_path / "run/checkpoints/step-00000006/state").glob("*.safetensors"):
        state |= load_file(path)
    averaged = {name.removeprefix("ema."): value for name, value in state.items() if name.startswith("ema.")}
    assert averaged
    for name, value in averaged.items():
        assert torch.equal(kept[name], value)
    assert not torch.equal(kept["to_latent.weight"], state["model.to_latent.weight"])
    tokenizer = load_tokenizer(folder)
    sources = recipe_media(wanted.data, "image")
    means = torch.cat([latents.mean for latents in tokenizer.encode(list(sources[0]))])
    assert means.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert means.std().item() == pytest.approx(1.0, abs=1e-3)


def test_a_tokenizer_learns_with_the_loss_weights_of_its_recipe(tmp_path):
    train(recipe(steps=1, loss_weights={"mse": 3.0, "prior": 50.0}), tmp_path / "run")
    (record,) = read_log(tmp_path / "run" / "train.jsonl")
    losses, beta = record["losses"], recipe().tokenizer.posterior.weight
    assert record["loss"] == pytest.approx(3 * recipe().losses.mse * losses["mse"] + 50 * beta * losses["prior"])


def test_a_tokenizer_shows_its_reconstructions_and_draws_its_curves(tmp_path):
    train(recipe(steps=4, sample_every=2), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert names == ["step-00000002-image.png", "step-00000004-image.png"]
    assert load_image(tmp_path / "run" / "samples" / names[0]).size == (8 * 10 + 2, 4 * 10 + 2)
    if find_spec("tensorboard"):
        assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_speech_tokenizer_learns_from_clips_of_any_rate_and_says_so(tmp_path, notices):
    lines = []
    for number, rate in enumerate((8000, 16000, 16000)):
        save_audio(Audio(torch.randn(rate // 2).mul(0.1).clamp(-1, 1), rate), tmp_path / f"{number}.wav")
        lines.append(json.dumps({"segments": [{"speech": f"{number}.wav"}]}) + "\n")
    (tmp_path / "clips.jsonl").write_text("".join(lines))
    small = {"sample_rate": 8000, "strides": (4, 4), "depths": (1, 1, 1), "channels": 4, "max_channels": 8}
    train(
        parse_recipe(
            {
                "kind": "speech_tokenizer",
                "tokenizer": small | {"latent_dim": 4},
                "data": {
                    "sources": [{"manifest": str(tmp_path / "clips.jsonl")}],
                    "batch_size": 3,
                    "seconds": 0.25,
                },
                "training": {"steps": 2, "log_every": 1, "precision": "fp32", "sample_every": 2},
            }
        ),
        tmp_path / "run",
    )
    samples = tmp_path / "run" / "samples"
    names = [f"{when}speech-{number}.wav" for when in ("", "step-00000002-") for number in (0, 1)]
    assert sorted(path.name for path in samples.iterdir()) == names
    assert {load_audio(samples / name).seconds for name in names} == {0.5}
    said = [f"{tmp_path / f'{number}.wav'}: 16,000 Hz resampled to 8,000 Hz" for number in (1, 2)]
    assert sorted(notices()) == said


def test_a_speech_tokenizer_trains_on_clips_of_the_loudness_that_it_will_read(tmp_path, monkeypatch):
    """A crop is as loud as it is within its clip; each clip is prepared once."""
    quiet_then_loud = torch.cat((torch.full((800,), 0.01), torch.full((800,), 0.1)))
    save_audio(Audio(quiet_then_loud, 8000), tmp_path / "a.wav")
    (tmp_path / "clips.jsonl").write_text('{"segments": [{"speech": "a.wav"}]}\n', encoding="utf-8")
    chosen = SpeechTokenizerRecipe(
        tokenizer=SpeechTokenizerConfig(
            sample_rate=8000, strides=(4,), depths=(1, 1), channels=4, max_channels=8, latent_dim=4, loudness=-12.0
        ),
        data=MediaConfig(sources=(SourceConfig(manifest=str(tmp_path / "clips.jsonl")),), batch_size=8, seconds=0.05),
    )
    run, calls = build_tokenizer(chosen, tmp_path, World()), []
    tokenizer, sources = run.model, run.media
    prepare = examples.prepare_clip
    monkeypatch.setattr(examples, "prepare_clip", lambda *clip: calls.append(clip) or prepare(*clip))
    loader = media_loader(chosen, run, World())
    crops = loader.next_step()[0].media
    whole = tokenizer.batch([sources[0][0]]).media.flatten()
    assert whole.square().mean().sqrt().item() == pytest.approx(10 ** (-12 / 20), rel=1e-3)
    assert crops.shape == (8, 1, 400)
    assert set(crops.unique().tolist()) <= set(whole.tolist())
    assert len(calls) == 1


def test_a_run_stopped_by_a_signal_raises_and_resumes(tmp_path, monkeypatch):
    class Impatient(Trainer):
        def _step(self, clock):
            self._asked = self.progress.step == 1
            super()._step(clock)

    monkeypatch.setattr(module, "Trainer", Impatient)
    with pytest.raises(ProcessFailed) as stopped:
        train(recipe(), tmp_path / "run")
    assert stopped.value.code == STOPPED
    monkeypatch.undo()
    train(recipe(), tmp_path / "run", resume=True)
    assert len((tmp_path / "run" / "train.jsonl").read_text().splitlines()) == 6


def test_a_resume_that_is_refused_leaves_the_recipe_and_names_the_key(tmp_path):
    train(recipe(), tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    other = recipe()
    other = other.model_copy(update={"tokenizer": other.tokenizer.model_copy(update={"width": 32})})
    with pytest.raises(ValueError, match=r"was made with tokenizer\.width = 16, this run has 32; cannot resume"):
        train(other, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    train(recipe(steps=7), tmp_path / "run", resume=True)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["training"]["steps"] == 7


def test_launched_processes_are_handed_the_recipe_and_do_not_read_the_folder_s(tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(module, "launch", lambda count, argv: launched.append(argv) or 0)
    (tmp_path / "recipe.yaml").write_text("of a run that never began")
    train(recipe(global_micro_batches=2), tmp_path, processes=2)
    ((_, name, *arguments),) = launched
    assert name == "latentlm.training.run"
    module.main(Path(arguments[0]), arguments[1])
    assert parse_recipe(yaml.safe_load((tmp_path / "recipe.yaml").read_text())) == recipe(global_micro_batches=2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_two_processes_with_one_line_and_the_folder_is_free(tmp_path, capfd):
    (tmp_path / "train.jsonl").symlink_to("/dev/full")
    two = recipe(global_micro_batches=2, steps=2, threads=1)
    with pytest.raises(ProcessFailed) as failed:
        train(two, tmp_path, processes=2)
    assert failed.value.code == 2
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "latentlm:" in line] == [said[-1]]
    assert said[-1] == f"latentlm: {tmp_path}/train.jsonl: No space left on device"
    (tmp_path / "train.jsonl").unlink()
    train(two, tmp_path, processes=2)
    assert len(read_log(tmp_path / "train.jsonl")) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "some/file"), "some/file: No space left on device"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_a_process_says_what_the_system_refuses_in_one_line(monkeypatch, capsys, error, line):
    def refuse(*_):
        raise error

    monkeypatch.setattr(module, "_train", refuse)
    monkeypatch.setattr(module.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        module.main(Path("run"), json.dumps(recipe().model_dump(mode="json")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"latentlm: {line}\n"


def test_a_tokenizer_is_not_sharded(tmp_path):
    with pytest.raises(ValueError, match=r"training.parallel shard is for language models"):
        train(recipe(parallel="shard", global_micro_batches=2), tmp_path / "run", processes=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weights": {"mze": 1.0}}, "training.loss_weights: no loss 'mze', did you mean 'mse'?"),
        ({"freeze": ["encoder"]}, "training.freeze is for language models"),
    ],
)
def test_keys_that_mean_nothing_to_a_tokenizer_are_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("key", "value"), [("noise", 2.0), ("task", "text_to_image"), ("augmented_copies", 1)], ids=lambda value: str(value)
)
def test_what_a_source_offers_language_models_alone_is_refused(key, value):
    with pytest.raises(RecipeError, match=rf"data.sources.{key} is for language models"):
        load_recipe("tiny_image", {"data.sources": [{"name": "digits", key: value}]})


def test_processes_must_divide_the_micro_batches_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="global_micro_batches 1 is not a multiple of the 2 processes"):
        train(recipe(), tmp_path / "run", processes=2)
    assert not (tmp_path / "run").exists()


def test_the_noise_of_a_source_is_its_own(tmp_path):
    sources = [{"name": "digits", "task": task, "limit": 8} for task in ("text_to_image", "image_to_text")]
    sources[0]["noise"] = 0.0
    changes = {"data.sources": sources, "data.rows": 1, "tokenizers.speech": None}
    chosen = load_recipe("demo", changes)
    run = build_latentlm(chosen, tmp_path, World())
    spans = document_loader(chosen, run, World()).next_step()[0].latents["image"]
    drawn = (spans.values != spans.means).any(1)
    assert torch.equal(drawn, ~spans.target)
    assert 0 < spans.target.sum() < len(spans.target)


def test_a_tokenizer_of_another_modality_is_named(tmp_path):
    folder = train(recipe(), tmp_path / "image")
    wanted = load_recipe("demo", {"tokenizers.speech": str(folder.parent), "training.steps": 1})
    with pytest.raises(ValueError, match=rf"tokenizers.speech: {folder.parent} is a tokenizer of image, not of speech"):
        train(wanted, tmp_path / "run")


def test_a_resume_with_another_tokenizer_is_refused_before_its_latents_are(tmp_path):
    changes = {
        "data.sources": [{"name": "digits", "task": "text_to_image", "limit": 8}],
        "data.rows": 1,
        "tokenizers.speech": None,
        "training.steps": 1,
        "model.transformer": {"width": 16, "num_layers": 1, "num_heads": 1},
        "model.heads": {},
    }
    train(load_recipe("demo", changes), tmp_path / "run")
    changes["tokenizers.image"] = str(train(recipe(), tmp_path / "image"))
    with pytest.raises(ValueError, match=r"made with fingerprints\.image = '\w+', this run has '\w+'; cannot resume"):
        train(load_recipe("demo", changes), tmp_path / "run", resume=True)


def test_a_run_is_its_own_recipe(tmp_path, capsys):
    train(recipe(), tmp_path / "run")
    cli.main(["train", str(tmp_path / "run"), "--resume", "--set", "training.steps=8"])
    assert capsys.readouterr().out.endswith(f"trained: {tmp_path / 'run' / 'model'}\n")
    assert read_log(tmp_path / "run" / "train.jsonl")[-1]["step"] == 8


def test_a_packaged_recipe_goes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "recipe.yaml").write_text("kind: nothing\n")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(module, "train", lambda recipe, folder, **_: asked.append((recipe, folder)) or folder)
    cli.main(["train", "demo"])
    assert asked == [(load_recipe("demo"), Path("runs/demo"))]
