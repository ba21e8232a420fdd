"""Speech on the command line: scripts and voices reach the model, sound is in its file as it is made, ends are said."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small import small_model

from latentlm import cli
from latentlm.checkpoint import write_config
from latentlm.data.script import read_script
from latentlm.errors import Notice
from latentlm.generation.pipeline import Pipeline, load
from latentlm.generation.request import Request
from latentlm.media.sound import load_audio
from latentlm.tokenizers.streaming import StreamDecoder
from latentlm.types import Text
from latentlm.weights import save_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from long_form import build

HOP, RATE = 3200, 24000
LINES = "Speaker 1: Good\nmorning."
SPEAK = ["generate", "talker", "talk.txt", "--to", "speech", "--out", "talk.wav", "--steps", "2", "--max-seconds", "1"]


@pytest.fixture(scope="module")
def talker():
    """A small random model of VibeVoice's kind; its speech never ends by itself."""
    return build(2048, width=16)


@pytest.fixture
def folder(tmp_path, talker, monkeypatch):
    """A checkpoint "talker", a script of two and a clip of each; the commands run in the folder above."""
    write_config(tmp_path / "talker", talker.model, talker.tokenizers)
    save_weights(tmp_path / "talker" / "model.safetensors", talker.model.state_dict())
    (tmp_path / "talk.txt").write_text("Speaker 1: Good morning.\nSpeaker 2: And to you.\n")
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", generator.standard_normal(RATE // 2) * 0.1, RATE)
    soundfile.write(tmp_path / "b.flac", generator.standard_normal((8000, 2)) * 0.1, 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == code


def test_a_script_with_voices_is_what_the_pipeline_says(folder, capsys, notices):
    cli.main([*SPEAK, "--voice", "1=a.wav", "--voice", "2=b.flac", "--seed", "4"])
    out, err = capsys.readouterr()
    assert out == "talk.wav\n"
    said = ["b.flac: 2 channels mixed down to one", "b.flac: 16,000 Hz resampled to 24,000 Hz"]
    assert [line for line in err.splitlines() if "b.flac" in line] == [f"latentlm: {line}" for line in said]
    assert "latentlm: the script has 2 speakers: 1 (1 turn), 2 (1 turn)\n" in err
    assert "talk.wav: cut after 1.1 s by --max-seconds" in err
    voices = {1: load_audio("a.wav"), "2": load_audio("b.flac")}
    options = {"voices": voices, "seed": 4, "steps": 2, "guidance": 2.0, "max_latents": 8}
    with pytest.warns(Notice, match="the script has 2 speakers"):
        (expected,) = load("talker").generate(read_script("talk.txt"), "speech", **options)
    spoken = load_audio("talk.wav")
    torch.testing.assert_close(spoken.samples, expected.samples.clamp(-1, 1), atol=1e-4, rtol=0)


def test_each_voice_reaches_the_speech(folder):
    said = []
    for voices in ([], ["--voice", "1=a.wav"], ["--voice", "2=a.wav"], ["--voice", "1=a.wav", "--voice", "2=b.flac"]):
        cli.main([*SPEAK, *voices])
        said.append(load_audio("talk.wav").samples)
    assert not any(torch.equal(one, two) for number, one in enumerate(said) for two in said[:number])


def test_a_voice_alone_is_the_only_speakers(folder):
    arguments = ["Good morning.", "--to", "speech", "--steps", "2", "--max-seconds", "0.3"]
    cli.main(["generate", "talker", *arguments, "--voice", "a.wav", "--out", "one.wav"])
    (folder / "one.txt").write_text("Speaker Anna: Good morning.")
    arguments[0] = "one.txt"
    cli.main(["generate", "talker", *arguments, "--voice", "Anna=a.wav", "--out", "two.flac"])
    assert torch.equal(load_audio("one.wav").samples, load_audio("two.flac").samples)


def test_ctrl_c_leaves_a_file_that_plays_and_says_how_long(folder, monkeypatch, capsys):
    push, calls = StreamDecoder.push, []

    def interrupted(self, latents):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return push(self, latents)

    monkeypatch.setattr(StreamDecoder, "push", interrupted)
    run(SPEAK, 130)
    assert "latentlm: stopped; talk.wav holds 0.4 s\n" in capsys.readouterr().err
    assert len(soundfile.read("talk.wav")[0]) == 3 * HOP
    calls[:] = [1] * 3
    (folder / "talk.wav").unlink()
    run(SPEAK, 130)
    assert "latentlm: stopped; nothing written\n" in capsys.readouterr().err


def test_speech_that_ends_at_once_says_so_and_leaves_no_file(folder, talker, capsys):
    weights = {name: value.clone() for name, value in talker.model.state_dict().items()}
    special = talker.model.special
    weights["text_head.weight"][[special.proceed, special.eos]] = first_hidden(talker) * torch.tensor([[-1.0], [1.0]])
    save_weights(folder / "talker" / "model.safetensors", weights)
    run(SPEAK, 2)
    assert "the speech ended before its first sound: nothing written to talk.wav" in capsys.readouterr().err
    assert not (folder / "talk.wav").exists()


@torch.inference_mode()
def first_hidden(talker) -> torch.Tensor:
    """What the text head sees at the <BOD> behind the script."""
    with pytest.warns(Notice, match="the script has 2 speakers"):
        prompt = talker.encoder(talker.prompt(read_script("talk.txt"), "speech"), closed=False)
    talker.encoder.open_span(prompt, "speech")
    places = torch.arange(len(prompt))[None]
    return talker.model.transformer(talker.model.embed_tokens(torch.tensor([prompt.ids])), places, places * 0)[0, -1]


def test_speech_that_the_context_ends_was_not_cut_by_the_limit(folder, capsys):
    small = build(400, width=16)
    write_config(folder / "short", small.model, small.tokenizers)
    save_weights(folder / "short" / "model.safetensors", small.model.state_dict())
    arguments = ["generate", "short", "Hello.", "--to", "speech", "--steps", "1", "--out", "a.wav"]
    cli.main([*arguments, "--max-seconds", "60"])
    said = capsys.readouterr().err
    assert "s by the model's limit, before the speech ended by itself" in said
    assert "--max-seconds" not in said


def test_without_a_limit_a_script_fills_the_context(talker):
    small = build(400, width=16)
    request = Request(small.prompt("Hello.", "speech"), "speech", steps=1)
    (output,) = small.generate_batch([request])
    prompt = small.encoder(request.prompt, closed=False)
    assert output.finish_reason == "length"
    assert output.num_steps == 400 - len(prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--voice", "a.wav"], "one voice, but speakers 1, 2; say whose it is, as in 1=clip.wav"),
        (["--voice", "3=a.wav"], "a voice for speaker '3', who says nothing in the script (speakers: 1, 2)"),
        (["--voice", "1=a.wav", "--voice", "1=b.flac"], "--voice 1=b.flac: speaker 1 has a voice already"),
        (["--voice", "1=a.wav", "--voice", "01=b.flac"], "--voice 01=b.flac: speaker 1 has a voice already"),
        (["--voice", "Anna=a.wav", "--voice", "anna=b.flac"], "--voice anna=b.flac: speaker anna has a voice already"),
        (["--voice", "a.wav", "--voice", "b.flac"], "--voice b.flac: whose voice is it? write --voice 1=clip.wav"),
        (
            ["--voice", "a.wav", "--voice", "1=b.flac"],
            "give voice (a clip) or voices (a clip of each speaker), not both",
        ),
        (["--voice", "1=c.wav"], "c.wav: no such file"),
        (["--voice", "1=talk.txt"], "talk.txt: not a readable sound file"),
        (["--voice", "1=silence.wav"], "silence.wav: the clip is silent"),
    ],
)
def test_voices_that_do_not_fit(folder, capsys, options, message):
    soundfile.write("silence.wav", np.zeros(100), RATE)
    run([*SPEAK, *options], 2)
    assert message in capsys.readouterr().err
    assert not (folder / "talk.wav").exists()


def test_a_model_without_speech_says_so(tmp_path, tokenizers, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    silent = {name: tokenizers[name] for name in ("text", "image")}
    model = small_model(silent)
    write_config(tmp_path / "silent", model, silent)
    save_weights(tmp_path / "silent" / "model.safetensors", model.state_dict())
    run(["generate", "silent", "hello", "--to", "speech", "--out", "a.wav"], 2)
    assert capsys.readouterr().err.strip() == "latentlm: this model has no speech; it has text, image"


@pytest.fixture
def small(folder, tokenizers, model):
    """A checkpoint "small" of a model of documents, beside what `folder` holds."""
    write_config(folder / "small", model, tokenizers)
    save_weights(folder / "small" / "model.safetensors", model.state_dict())
    return Pipeline(model, tokenizers)


@pytest.mark.parametrize(
    "prompt",
    [
        ["talk.txt"],
        ["Speaker 1: Good morning.\nSpeaker 2: And to you."],
        ["Speaker 1: Good morning.", "Speaker 2: And to you."],
    ],
)
def test_a_document_model_refuses_several_speakers_wherever_they_stand(small, capsys, prompt):
    run(["generate", "small", *prompt, "--to", "speech", "--out", "a.wav", "--voice", "1=a.wav"], 2)
    err = capsys.readouterr().err
    assert "latentlm: the script has 2 speakers: 1 (1 turn), 2 (1 turn)\n" in err
    assert "the script has speakers 1, 2; this model reads a text and one voice" in err


def test_a_document_model_reads_the_words_of_one_speaker_without_the_label(folder, small):
    (folder / "one.txt").write_text(LINES)
    clip = load_audio("a.wav")
    with pytest.warns(Notice, match=r"the script has 1 speaker: 1 \(1 turn\)"):
        from_lines = [small.prompt(script, "speech", voices={1: clip}) for script in (Path("one.txt"), LINES)]
    documents = [
        *from_lines,
        small.prompt("Good morning.", "speech", clip),
        small.prompt("**Speaker 1:** Good morning.", "speech", clip),
        small.prompt(Text("Speaker 1: Good morning."), "speech", clip),
        small.prompt(["Speaker 1: Good morning."], "speech", voices={"01": clip}),
    ]
    for document in documents:
        said, words = document.segments
        assert torch.equal(said.content.samples, clip.samples)
        assert words == Text("Good morning.", condition=True, loss=False)


def test_the_command_reads_the_same_script_from_a_file_and_from_its_arguments(folder, small):
    (folder / "one.txt").write_text("Speaker Anna: Good morning.")
    for prompt, out in (("one.txt", "one.wav"), ("Speaker Anna: Good morning.", "two.wav"), ("Good morning.", "3.wav")):
        arguments = ["--to", "speech", "--steps", "2", "--max-seconds", "0.1", "--out", out]
        cli.main(["generate", "small", prompt, *arguments])
    assert Path("one.wav").read_bytes() == Path("two.wav").read_bytes() == Path("3.wav").read_bytes()


def test_a_mistake_in_the_script_names_its_line(folder, capsys):
    (folder / "talk.txt").write_text("Speaker 1: Hi.\nSpeaker 2:\n")
    run(SPEAK, 2)
    assert capsys.readouterr().err == "latentlm: talk.txt:2: Speaker 2 says nothing\n"


def test_validate_says_the_speakers_of_scripts(folder, capsys):
    texts = ("Speaker 1: Hi.\nSpeaker Ana: Hola.", "seven", "Speaker: seven")
    given = [{"segments": [{"text": text, "condition": True}, {"speech": "a.wav"}]} for text in texts]
    heard = {"segments": [{"speech": "a.wav", "condition": True}, {"text": "Speaker: seven"}]}
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, [*given, heard])), encoding="utf-8")
    cli.main(["data", "validate", "mine.jsonl"])
    out = capsys.readouterr().out
    assert "    1 script, 2 speakers: 1 (1 turn), Ana (1 turn)\n" in out
    assert "    1 text that models of scripts refuse, the first: mine.jsonl:3:1: 'Speaker' names no speaker" in out
