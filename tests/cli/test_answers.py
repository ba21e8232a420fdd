"""Where answers go and how many there are; where they are made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import latentlm
from latentlm import Request, cli
from latentlm.checkpoint import write_config
from latentlm.commands import answers
from latentlm.commands.prompt_words import spaced
from latentlm.evaluation import folder as evaluation
from latentlm.evaluation.report import Report
from latentlm.generation.answers import answer
from latentlm.generation.pipeline import load
from latentlm.media.picture import load_image
from latentlm.media.sound import load_audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import GenerationOutput, Text
from latentlm.weights import save_weights

CUDA_MISSING = "latentlm: device 'cuda' was asked for, but torch sees no CUDA device\n"


@pytest.fixture
def small(tmp_path, model, tokenizers, monkeypatch) -> str:
    """The name of a checkpoint in the working directory."""
    write_config(tmp_path / "small", model, tokenizers)
    save_weights(tmp_path / "small" / "model.safetensors", model.state_dict())
    monkeypatch.chdir(tmp_path)
    return "small"


@pytest.fixture
def answering(monkeypatch):
    """Lets a test choose what the model answers: segments, and why it stopped."""

    def choose(*segments, reason: str = "stop") -> None:
        output = GenerationOutput(segments, reason, 7)
        monkeypatch.setattr("latentlm.generation.pipeline.Pipeline.generate_batch", lambda _, requests: [output])

    return choose


def failing(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    return capsys.readouterr().err


def pixels(path) -> np.ndarray:
    return np.asarray(load_image(path), np.int16)


def test_several_pictures_have_numbered_files_and_consecutive_seeds(small, monkeypatch, capsys):
    monkeypatch.setattr("latentlm.commands.generate.AT_ONCE", 2)
    options = ["--to", "image", "--steps", "2", "--seed", "5", "--num", "3", "--out", "new/a.png"]
    cli.main(["generate", small, "ab", *options])
    assert capsys.readouterr().out.split() == [f"new/a-{number}.png" for number in range(3)]
    for number, expected in enumerate(load(small).generate("ab", "image", steps=2, seed=5, num=3)):
        assert abs(pixels(f"new/a-{number}.png") - np.asarray(expected, np.int16)).max() <= 1


def test_several_texts_are_printed_one_a_line_and_several_sounds_have_files(small, capsys):
    cli.main(["generate", small, "ab", "--to", "text", "--num", "2", "--max-tokens", "1", "--temperature", "1"])
    assert capsys.readouterr().out.count("\n") >= 2
    speak = ["generate", small, "ab", "--to", "speech", "--steps", "1", "--max-seconds", "0.02", "--seed", "3"]
    cli.main([*speak, "--num", "2", "--out", "a.wav"])
    cli.main([*speak[:-1], "4", "--out", "b.wav"])
    assert torch.equal(load_audio("a-1.wav").samples, load_audio("b.wav").samples)
    assert Path("a-0.wav").is_file()


def test_an_answer_of_many_kinds_is_a_folder_and_its_text_names_the_files(small, answering, pipeline, capsys):
    (drawn,), (said,) = pipeline.generate("a", "image", steps=1), pipeline.generate("a", "speech", steps=1, seed=2)
    answering(Text("see "), Image(drawn), Text(", hear "), Speech(said), reason="length")
    cli.main(["generate", small, "ab", "--to", "auto", "--out", "new/answer"])
    out, err = capsys.readouterr()
    assert out == "see [image: new/answer/1.png], hear [speech: new/answer/3.wav]\n"
    assert "latents by a limit (--max-tokens, --max-seconds, --max-latents, the model's context), before" in err
    assert sorted(path.name for path in Path("new/answer").iterdir()) == ["0.txt", "1.png", "2.txt", "3.wav"]
    assert Path("new/answer/2.txt").read_text() == ", hear \n"
    assert np.array_equal(pixels("new/answer/1.png"), np.asarray(drawn, np.int16))
    line = failing(capsys, "generate", small, "ab", "--to", "auto", "--out", "new/answer")
    assert line == "latentlm: --out new/answer: is there already; a result of --to auto is a new folder\n"


def test_what_the_model_chooses_reaches_the_folder(small, capsys):
    options = ["--temperature", "1", "--max-tokens", "9", "--max-seconds", "0.02", "--steps", "1"]
    cli.main(["generate", small, "ab", "--to", "auto", "--out", "auto", *options])
    limit = round(0.02 * load(small).tokenizers["speech"].rate)
    (segments,) = load(small).generate("ab", "auto", temperature=1.0, max_tokens=9, max_latents=limit, steps=1)
    assert len(list(Path("auto").glob("*"))) == len(segments) > 0


@pytest.mark.parametrize("to", ["text", "auto"])
def test_an_empty_answer_is_said(small, answering, capsys, to):
    answering(*[Text("")] * (to == "text"))
    cli.main(["generate", small, "ab", "--to", to, *["--out", "new"] * (to == "auto")])
    assert capsys.readouterr() == ("\n", "latentlm: the model ended at once: its answer is empty\n")
    assert not Path("new").exists()


def test_vectors_say_what_cut_them_and_nothing_is_written_of_none(tmp_path, capsys):
    made = latentlm.Vectors(np.ones((3, 2)))
    request = Request("a", "vectors", max_latents=3)
    for num, given, cause in ((3, 3, "--max-latents"), (512, None, "--max-latents"), (3, 9, "the end of the model's")):
        answers.write(GenerationOutput((made,), "length", num), replace(request, max_latents=given), tmp_path / "a.npy")
        assert f"cut after {num} latents by {cause}" in capsys.readouterr().err
    answers.write(GenerationOutput((made, made), "stop", 8), request, tmp_path / "two.npy")
    assert np.load(tmp_path / "two.npy").shape == (6, 2)
    assert answer(GenerationOutput((made, made), "stop", 8)).shape == (6, 2)
    for segment, reason, said in (
        (latentlm.Vectors(np.ones((0, 2))), "stop", "the model ended at once: nothing written to"),
        (made, "diverged", "the model diverged"),
    ):
        with pytest.raises(ValueError, match=said):
            answers.write(GenerationOutput((segment,), reason), request, tmp_path / "none.npy")
    assert not (tmp_path / "none.npy").exists()


def test_speech_that_diverges_is_an_error(small, capsys):
    said = failing(capsys, "generate", small, "ab", "--to", "speech", "--out", "a.wav", "--guidance", "1e300")
    assert said == "latentlm: the model diverged: its numbers are no longer finite; try less guidance, or fp32\n"
    assert not Path("a.wav").exists()


def test_a_solver_reaches_the_model_and_an_unknown_one_is_named(small, capsys):
    options = ["--to", "image", "--steps", "3", "--out"]
    for solver in ("dpm++2m", "euler"):
        cli.main(["generate", small, "ab", *options, f"{solver}.png", "--solver", solver])
        (expected,) = load(small).generate("ab", "image", steps=3, solver=solver)
        assert np.array_equal(pixels(f"{solver}.png"), np.asarray(expected, np.int16))
    assert not np.array_equal(pixels("dpm++2m.png"), pixels("euler.png"))
    capsys.readouterr()
    line = failing(capsys, "generate", small, "ab", *options, "x.png", "--solver", "eulr")
    assert line == "latentlm: solver 'eulr' is unknown, did you mean 'euler'?\n"


def test_texts_that_follow_each_other_have_a_space_between_them(small, monkeypatch, capsys):
    asked = []

    def answer(_, requests):
        asked.extend(request.prompt for request in requests)
        return [GenerationOutput((Text("yes"),), "stop")]

    monkeypatch.setattr("latentlm.generation.pipeline.Pipeline.generate_batch", answer)
    cli.main(["generate", small, "red", "apple", "--to", "text"])
    assert [segment.text for segment in asked[0].segments] == ["red apple"]
    picture = object()
    assert spaced(["a ", "b", "\nc", "", "d", picture, "e", "f"]) == ["a b\nc d", picture, "e f"]


def test_the_lines_of_a_script_stay_lines(small, monkeypatch):
    seen = []

    def prompt(_, parts, *rest):
        seen.append(parts)
        raise latentlm.UserError("seen")

    monkeypatch.setattr("latentlm.generation.pipeline.Pipeline.prompt", prompt)
    with pytest.raises(SystemExit):
        cli.main(["generate", small, "red", "apple", "--to", "speech", "--out", "a.wav"])
    config = Path(small) / "config.json"
    config.write_text(config.read_text().replace('"prompt": "document"', '"prompt": "script"'))
    with pytest.raises(SystemExit):
        cli.main(["generate", small, "Speaker 1: a", "Speaker 2: b", "--to", "speech", "--out", "a.wav"])
    assert seen == [["red apple"], ["Speaker 1: a\nSpeaker 2: b"]]


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize(
    ("gpus", "options", "device", "dtype"),
    [
        (1, [], "cuda", torch.bfloat16),
        (1, ["--dtype", "fp32"], "cuda", torch.float32),
        (1, ["--device", "cpu"], "cpu", torch.float32),
        (2, ["--device", "cuda:1"], "cuda:1", torch.bfloat16),
        (0, [], "cpu", torch.float32),
        (0, ["--dtype", "bf16"], "cpu", torch.bfloat16),
    ],
)
def test_a_model_is_loaded_where_and_as_it_is_asked_for(monkeypatch, tmp_path, command, gpus, options, device, dtype):
    asked = {}

    def recording(name, **options):
        asked.update(options)
        raise latentlm.UserError("asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latentlm.load", recording, raising=False)
    monkeypatch.setattr(evaluation, "load", recording)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    own = ["x", "--to", "text"] if command == "generate" else ["--out", "x.json"]
    with pytest.raises(SystemExit):
        cli.main([command, "tiny", *own, *options])
    assert (asked["device"], asked["dtype"]) == (torch.device(device), dtype)


def test_bf16_draws_nearly_the_same_and_is_measured(small, monkeypatch, capsys, margin):
    for dtype in ("fp32", "bf16"):
        draw = ["--to", "image", "--steps", "3", "--guidance", "1", "--out", f"{dtype}.png"]
        cli.main(["generate", small, "ab", *draw, "--dtype", dtype])
    difference = abs(pixels("fp32.png") - pixels("bf16.png")).mean()
    assert difference > 0
    margin("levels of 256", difference, at_most=20)
    measured = []
    monkeypatch.setattr(evaluation, "evaluate", lambda pipeline, **_: measured.append(pipeline) or Report("x"))
    cli.main(["evaluate", small, "--out", "x.json", "--dtype", "bf16"])
    assert measured[0].model.text_head.weight.dtype == torch.bfloat16
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert failing(capsys, "generate", small, "ab", "--to", "text", "--device", "cuda") == CUDA_MISSING
    assert failing(capsys, "evaluate", small, "--out", "x.json", "--device", "cuda") == CUDA_MISSING
