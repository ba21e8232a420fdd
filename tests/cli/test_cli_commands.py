"""The commands do what they say: called in this process, on small real models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from latentlm import __version__, cli
from latentlm.checkpoint import write_config
from latentlm.commands.prompt_words import read_part
from latentlm.config import AdapterConfig
from latentlm.evaluation import folder as evaluation
from latentlm.evaluation.protocol import GUIDANCE
from latentlm.evaluation.report import Report
from latentlm.generation.pipeline import load
from latentlm.media.picture import load_image
from latentlm.media.sound import load_audio
from latentlm.model import adapter
from latentlm.weights import save_weights


@pytest.fixture
def checkpoint(tmp_path, model, tokenizers, monkeypatch):
    """A checkpoint with raw weights and other, averaged ones, whose speech never ends by itself.

    The commands run in the folder above it, where it is called "small".
    """
    folder = tmp_path / "small"
    write_config(folder, model, tokenizers)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["text_head.weight"][[model.special.eod, model.special.proceed]] = 0  # equal to the bit: argmax goes on
    save_weights(folder / "model.safetensors", weights)
    averaged = {name: value * 0.7 for name, value in weights.items()}
    save_weights(folder / "ema.safetensors", averaged)
    monkeypatch.chdir(tmp_path)
    return folder


def pixels(path) -> np.ndarray:
    return np.asarray(load_image(path))


def test_a_picture(checkpoint, tmp_path, capsys):
    cli.main(["generate", "small", "ab", "--to", "image", "--out", "new/a.png", "--steps", "3", "--seed", "5"])
    assert capsys.readouterr().out == "new/a.png\n"
    (expected,) = load(checkpoint).generate("ab", "image", steps=3, seed=5, guidance=2.0)
    assert np.array_equal(pixels(tmp_path / "new" / "a.png"), np.asarray(expected))


def test_every_sampling_option_reaches_the_model(checkpoint):
    base = ["generate", "small", "ab", "--to", "image"]
    cli.main([*base, "--out", "base.png"])
    for number, options in enumerate((["--seed", "1"], ["--guidance", "1"], ["--steps", "2"], ["--raw"])):
        cli.main([*base, *options, "--out", f"{number}.png"])
        assert not np.array_equal(pixels("base.png"), pixels(f"{number}.png")), options


def test_speech_ends_at_max_seconds_and_hears_the_voice(checkpoint, tokenizers):
    base = ["generate", "small", "--to", "speech", "--steps", "2", "--max-seconds", "0.02"]
    cli.main([*base, "ab", "--out", "a.wav"])
    spoken = load_audio("a.wav")
    assert spoken.sample_rate == tokenizers["speech"].sample_rate
    assert spoken.seconds == 0.02
    cli.main([*base, "ab", "--voice", "a.wav", "--out", "b.wav"])
    assert not np.array_equal(load_audio("b.wav").samples, spoken.samples)


def test_text_from_files_goes_to_the_terminal_or_a_file(checkpoint, tmp_path, capsys):
    cli.main(["generate", "small", "ab", "--to", "image", "--out", "a.png", "--steps", "2"])
    capsys.readouterr()
    command = ["generate", "small", "a.png", "what is it? ", "--to", "text", "--max-tokens", "5"]
    cli.main(command)
    printed, said = capsys.readouterr()
    assert said == "latentlm: cut after 5 tokens by --max-tokens, before the model ended the text\n"
    picture = load_image("a.png")
    assert printed == load(checkpoint).generate([picture, "what is it? "], "text", max_tokens=5)[0] + "\n"
    cli.main([*command, "--out", "answer.txt"])
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8") == printed


def test_the_line_end_of_a_text_file_is_not_asked(checkpoint, tmp_path):
    (tmp_path / "words.txt").write_bytes(b"two\nlines\r\n\n")
    assert read_part("words.txt", "image") == "two\nlines"


def test_an_adapter_is_used_merged_and_refused(checkpoint, tmp_path):
    pytest.importorskip("peft")
    live = load(checkpoint).model
    start = adapter.start_of(live)
    adapter.insert(live, AdapterConfig(rank=2, full=("heads",)), "small")
    with torch.no_grad():
        for value in live.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.ones_like(value))
    adapter.save(live, live.state_dict(), tmp_path / "mine" / "adapter", start)
    picture = ["--to", "image", "--steps", "2", "--out"]
    cli.main(["generate", "small", "ab", *picture, "plain.png"])
    cli.main(["generate", "small", "ab", "--adapter", "mine", *picture, "adapted.png"])
    cli.main(["merge", "small", "mine", "--out", "merged"])
    cli.main(["generate", "merged", "ab", *picture, "merged.png"])
    assert np.array_equal(pixels("adapted.png"), pixels("merged.png"))
    assert not np.array_equal(pixels("adapted.png"), pixels("plain.png"))
    with pytest.raises(SystemExit):
        cli.main(["merge", "small", "mine", "--out", "merged"])
    with pytest.raises(SystemExit):
        cli.main(["merge", "small", "small", "--out", "other"])
    assert not (tmp_path / "other").exists()


def test_train_passes_recipe_overrides_and_folder(monkeypatch, tmp_path):
    calls = []

    def record(recipe, folder, **options):
        calls.append((recipe, str(folder), options))
        return tmp_path

    monkeypatch.setattr("latentlm.training.run.train", record)
    changes = ["--set", "training.steps=7", "--set", "data.condition_dropout=0.5"]
    cli.main(["train", "demo", *changes, "--processes", "2", "--resume"])
    cli.main(["train", "demo", "--out", "elsewhere"])
    (first, folder, options), (_, other, plain) = calls
    assert (first.training.steps, first.data.condition_dropout) == (7, 0.5)
    assert (folder, options) == ("runs/demo", {"processes": 2, "resume": True})
    assert (other, plain) == ("elsewhere", {"processes": 1, "resume": False})


def test_a_tokenizer_trains_from_a_recipe_file(tmp_path, monkeypatch):
    recipe = {
        "kind": "image_tokenizer",
        "tokenizer": {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2},
        "data": {"sources": [{"name": "digits", "limit": 16}], "batch_size": 8},
        "training": {"steps": 2, "precision": "fp32", "threads": 1, "optimizer": {"warmup_steps": 1}},
    }
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    cli.main(["train", "little.yaml", "--set", "training.steps=3"])
    assert (tmp_path / "runs" / "little" / "model" / "model.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "runs" / "little" / "recipe.yaml").read_text())["training"]["steps"] == 3


def test_demo_passes_what_it_is_told(monkeypatch, tmp_path, capsys):
    calls = []

    def record(*arguments, **options):
        calls.append((arguments, options))
        return tmp_path / "report.html"

    monkeypatch.setattr("latentlm.demo.run", record)
    cli.main(["demo", "--out", "here", "--minutes", "2.5", "--quick", "--setup-seconds", "61", "--threads", "3"])
    assert calls == [((Path("here"), 2.5, True), {"setup_seconds": 61.0, "threads": 3})]
    assert "report.html" in capsys.readouterr().out


def test_a_preview_shows_every_task_of_a_source(capsys):
    pytest.importorskip("espeakng_loader")
    cli.main(["data", "preview", "spoken_digits", "-n", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        task for task in ("text_to_speech", "speech_to_text", "text_to_speech_in_voice") for _ in range(3)
    ]


def test_data_list_and_preview(tmp_path, capsys):
    cli.main(["data", "list"])
    listed = capsys.readouterr().out
    assert "digits:" in listed
    assert "297 held_out" in listed
    cli.main(["data", "preview", "digits", "-n", "2", "--out", str(tmp_path / "look")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "] image 8×8" in lines[0]
    assert load_image(tmp_path / "look" / "text_to_image_1_1.png").size == (8, 8)


def test_data_of_ones_own(tmp_path, checkpoint, capsys):
    cli.main(["generate", "small", "ab", "--to", "image", "--out", "a.png", "--steps", "2"])
    line = {"segments": [{"text": "a word", "condition": True}, {"image": "a.png"}]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    capsys.readouterr()
    cli.main(["data", "validate", "mine.jsonl"])
    assert "mine.jsonl: 1 documents, segments: 1 text, 1 image" in capsys.readouterr().out
    cli.main(["data", "preview", "mine.jsonl"])
    assert capsys.readouterr().out == "1: [text 'a word'] image a.png 8×8\n"


def test_evaluate_writes_figures_and_page(checkpoint, tmp_path, capsys):
    cli.main(["evaluate", "small", "--out", "figures/small.json", "--quick", "--only", "text"])
    figures = json.loads((tmp_path / "figures" / "small.json").read_text())
    assert 0 < figures["text.bits_per_byte"] < 100
    assert "digits.prompt_accuracy" not in figures
    assert "text.bits_per_byte" in capsys.readouterr().out
    cli.main(["evaluate", "small", "--out", "small.html", "--quick", "--raw", "--only", "text"])
    assert "bits per byte" in (tmp_path / "small.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["1.5"], dict.fromkeys(GUIDANCE, 1.5)),
        (["digits=1.5"], {"digits": 1.5}),
        (["3", "emoji=2", "emoji=4"], dict.fromkeys(GUIDANCE, 3.0) | {"emoji": 4.0}),
    ],
)
def test_evaluate_hands_on_how_to_sample(checkpoint, monkeypatch, given, expected):
    asked = {}
    report = Report("x")
    monkeypatch.setattr(evaluation, "evaluate", lambda pipeline, **options: asked.update(options) or report)
    sampling = ["--steps", "7", "--solver", "ddim", *[a for g in given for a in ("--guidance", g)]]
    cli.main(["evaluate", "small", "--out", "x.json", *sampling])
    assert (asked["guidance"], asked["steps"], asked["solver"], asked["tasks"]) == (expected, 7, "ddim", None)


def test_evaluate_sets_the_threads(checkpoint, monkeypatch):
    asked = []
    monkeypatch.setattr("latentlm.hardware.set_threads", asked.append)
    monkeypatch.setattr(evaluation, "evaluate", lambda pipeline, **options: Report("x"))
    cli.main(["evaluate", "small", "--out", "x.json", "--threads", "3"])
    cli.main(["evaluate", "small", "--out", "x.json"])
    assert asked == [3, None]


def test_evaluate_says_what_was_left_out(checkpoint, monkeypatch, capsys):
    report = Report("x")
    report.leave_out("speech", "the model has no speech")
    monkeypatch.setattr(evaluation, "evaluate", lambda pipeline, **options: report)
    cli.main(["evaluate", "small", "--out", "x.json"])
    assert capsys.readouterr().out == "speech: not measured, the model has no speech.\nx.json\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("demo", "train", "generate", "evaluate", "data", "latentlm generate tiny")),
        (("demo",), ("--out", "--minutes", "--quick")),
        (("train",), ("RECIPE", "--set", "--processes", "--resume", "latentlm train demo")),
        (("generate",), ("MODEL", "PROMPT", "--to", "--guidance", "--voice", "--max-seconds", "Sampling")),
        (("evaluate",), ("MODEL", "--out", "--only", "--guidance", "--steps", "--quick")),
        (("data",), ("list", "preview", "validate")),
    ],
)
def test_help_names_what_there_is(capsys, command, words):
    cli.main([*command, "--help"])
    shown = capsys.readouterr().out
    assert [word for word in words if word not in shown] == []


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
