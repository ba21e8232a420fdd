"""What a user may pass as a prompt: one thing or several, files by their paths, voices by theirs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import clip, picture

from latentlm.data.script import Script, Turn, parse_script
from latentlm.errors import Notice, UserError
from latentlm.generation.prompts import as_prompt, make_prompt
from latentlm.generation.request import Request
from latentlm.media.picture import save_image
from latentlm.media.sound import save_audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text

GIVEN = {"condition": True, "loss": False}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.png, a.wav and a.txt in the working directory; what they were written from."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    drawn, said = picture(generator), clip(generator)
    save_image(drawn, "a.png")
    save_audio(said, "a.wav")
    Path("a.txt").write_text("two words\n", encoding="utf-8")
    Path("noext").write_bytes(Path("a.png").read_bytes())
    Path("kept.heic").write_bytes(b"")
    Path("folder").mkdir()
    return drawn, said


def test_one_thing_is_a_prompt_of_one(files):
    drawn, said = files
    assert as_prompt(drawn).segments == (Image(drawn, **GIVEN),)
    assert as_prompt(said).segments == (Speech(said, **GIVEN),)
    assert as_prompt(Text("a")).segments == (Text("a", **GIVEN),)
    assert as_prompt("a.png").segments == (Text("a.png", **GIVEN),)  # a string stays text


def test_a_path_is_read_by_its_suffix(files):
    drawn, said = files
    image, speech, text = make_prompt([Path("a.png"), Path("a.wav"), Path("a.txt")], "image", "document").segments
    assert np.array_equal(np.asarray(image.content), np.asarray(drawn))
    torch.testing.assert_close(speech.content.samples, said.samples, atol=1e-4, rtol=0)
    assert text == Text("two words", **GIVEN)
    script = make_prompt(Path("a.txt"), "speech", "script")
    assert script == make_prompt(Script((Turn("1", "two words"),)), "speech", "script")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ("  ", "the prompt is empty"),
        ([], "the prompt is empty"),
        (Path("nowhere.png"), "^nowhere.png: no such file"),
        (Path("nowhere"), "^nowhere: no such file"),
        (Path("noext"), r"^noext: the name has no extension, so its kind is unknown \(known: .png, "),
        (Path("a.heic"), "^a.heic: no such file"),
        (Path("kept.heic"), "^kept.heic: files of this kind are not read, only .png, "),
        (Path("folder"), "^folder: is a folder; a prompt is made of files"),
        (5, r"a prompt is made of text, files \(pathlib.Path\) and media \(image, speech, vectors\), not int"),
        (b"bytes", "and media .*, not bytes"),
        (np.zeros(8), "and media .*, not ndarray"),
        ([Document((Text("a"),))], "and media .*, not Document"),
    ],
)
def test_what_is_no_prompt_is_named(files, prompt, message):
    with pytest.raises(ValueError, match=message):
        as_prompt(prompt)


def test_a_voice_is_a_clip_or_its_file(files):
    for voice in ("a.wav", Path("a.wav")):
        spoken, _ = make_prompt("a", "speech", "document", voice).segments
        torch.testing.assert_close(spoken.content.samples, files[1].samples, atol=1e-4, rtol=0)
        by_name = make_prompt("Speaker 1: a", "speech", "script", voices={1: voice})
        assert [segment.modality for segment in by_name.segments].count("speech") == 1
    with pytest.raises(ValueError, match=r"^nowhere.wav: no such file$"):
        make_prompt("a", "speech", "document", "nowhere.wav")
    with pytest.raises(ValueError, match="a voice is an Audio or the path of a sound file, not int"):
        make_prompt("a", "speech", "document", 3)
    with pytest.raises(ValueError, match="voices is a dict from speakers to clips, not list"):
        make_prompt("a", "speech", "document", voices=["a.wav"])


@pytest.mark.parametrize("layout", ["script", "document"])
@pytest.mark.parametrize("second", ["1", "01", "Speaker 1"])
def test_two_voices_of_one_speaker_are_refused(files, layout, second):
    with pytest.raises(UserError, match=f"two voices for speaker 1 .the second is given for '{second}'"):
        make_prompt("Speaker 1: a", "speech", layout, voices={1: files[1], second: "a.wav"})


def test_a_silent_voice_is_refused(files):
    silence = replace(files[1], samples=torch.zeros(100), name="quiet.wav")
    for options in ({"voice": silence}, {"voices": {1: silence}}):
        with pytest.raises(UserError, match=r"quiet\.wav: the clip is silent"):
            make_prompt("a", "speech", "document", **options)


TWO = "Speaker 1: one\nSpeaker 2: two"


@pytest.mark.parametrize("prompt", [TWO, TWO.split("\n"), Text(TWO), parse_script(TWO), Path("two.txt")])
def test_a_script_is_one_however_it_is_given(files, prompt):
    Path("two.txt").write_text(TWO + "\n", encoding="utf-8")
    with pytest.warns(Notice, match=r"^the script has 2 speakers: 1 \(1 turn\), 2 \(1 turn\)$"):
        document = make_prompt(prompt, "speech", "script", voices={2: "a.wav"})
    assert [s.text for s in document.segments if isinstance(s, Text)][-3:-1] == [
        " Speaker 0: one\n",
        " Speaker 1: two\n",
    ]
    with (
        pytest.raises(UserError, match="the script has speakers 1, 2; this model reads a text and one voice"),
        pytest.warns(Notice),
    ):
        make_prompt(prompt, "speech", "document")


def test_the_texts_beside_media_are_scripts_too(files):
    image, text = make_prompt([files[0], "Speaker 1: one"], "speech", "document").segments
    assert (image, text) == (Image(files[0], **GIVEN), Text("one", **GIVEN))
    with pytest.raises(UserError, match="speakers 1, 2"), pytest.warns(Notice):
        make_prompt(["Speaker 1: one", files[0], "Speaker 2: two"], "speech", "document")
    with pytest.raises(UserError, match="a script is text, not Image; voices are given beside it"):
        make_prompt(["Speaker 1: one", files[0]], "speech", "script")
    assert make_prompt([files[0]], "speech", "document").segments == (Image(files[0], **GIVEN),)


def test_labels_are_words_where_nothing_is_spoken(files):
    assert make_prompt(TWO, "image", "document").segments == (Text(TWO, **GIVEN),)


def test_moods_that_are_not_read_are_said(files):
    with pytest.warns(Notice, match=r"^the script has 1 speaker: 1 \(1 turn\); not read: \(glad\)$"):
        (text,) = make_prompt("Speaker 1 (glad): one", "speech", "document").segments
    assert text == Text("one", **GIVEN)


def test_lines_without_a_speaker_are_said_to_be_one_voice(files):
    with pytest.warns(Notice, match="^the script has no speaker lines: one voice reads its 2 lines$"):
        (text,) = make_prompt("one\ntwo", "speech", "document").segments
    assert text == Text("one two", **GIVEN)
    Path("two.txt").write_text("Speaker 1: one\nSpeaker 2 two", encoding="utf-8")
    with pytest.raises(UserError, match=r"^two\.txt:2: 'Speaker 2 two' has no colon"):
        make_prompt(Path("two.txt"), "speech", "document")


def test_a_request_takes_what_generate_takes(files, pipeline):
    for prompt in ("a", ["a", files[0]], Path("a.png")):
        (output,) = pipeline.generate_batch([Request(prompt, "image", steps=2)])
        (expected,) = pipeline.generate(prompt, "image", steps=2)
        assert np.array_equal(np.asarray(output.segments[0].content), np.asarray(expected))
        (streamed,) = pipeline.stream(Request(prompt, "image", steps=2))
        assert np.array_equal(np.asarray(streamed), np.asarray(expected))
