"""Scripts: what is read, what is refused and where, and the pieces that Microsoft's processor made of the same."""

import json
from itertools import groupby
from pathlib import Path

import PIL.Image
import pytest
import torch

from latentlm.data.script import (
    Script,
    ScriptDocuments,
    Turn,
    parse_script,
    read_script,
    script_document,
    script_prompt,
)
from latentlm.media.sound import Audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vibevoice_prompts.json").read_text(encoding="utf-8"))
ONE, TWO, SAID = (Audio(torch.full((100,), level), 8000) for level in (0.1, 0.2, 0.3))
PICTURE = PIL.Image.new("RGB", (4, 4))
TURNS = (Turn("1", "Good morning."), Turn("2", "Good morning to you. And on."), Turn("1", "Fine: thank you."))


@pytest.mark.parametrize(
    "text",
    [
        "Speaker 1: Good morning.\nSpeaker 2: Good morning to you. And on.\nSpeaker 1: Fine: thank you.",
        "\n  speaker 1 :Good morning.  \r\n\r\nSPEAKER 2:   Good morning to you.\n\n And on.\n"
        "Speaker 01: Fine: thank you.  ",
        "Speaker 1:\nGood morning.\nSpeaker 2：Good morning\nto you. And on.\nSpeaker 1: Fine: thank you.",
    ],
)
def test_turns_with_continuations_and_blank_lines(text):
    assert parse_script(text).turns == TURNS


def test_plain_text_is_speaker_1():
    script = parse_script("One line.\n\nAnother: with a colon.\n")
    assert script == Script((Turn("1", "One line. Another: with a colon."),))


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["1"], [0]),
        (["2", "1"], [1, 0]),
        (["1", "3"], [0, 2]),
        (["0", "2"], [0, 2]),
        (["Anna", "Dr. Bell", "1"], [0, 1, 2]),
    ],
)
def test_speakers_are_numbered_from_nought(names, numbers):
    script = parse_script("\n".join(f"Speaker {name}: hello" for name in names * 2))
    assert script.speakers == dict(zip(names, numbers, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n\n", "talk.txt: the script is empty"),
        ("Welcome!\nSpeaker 1: Hi.", "talk.txt:1: words before the first speaker, 'Welcome!'"),
        ("Speaker 1: Hi.\n\nSpeaker 2\nHello.", "talk.txt:3: 'Speaker 2' has no colon; write 'Speaker 1: words'"),
        ("Speaker 1: Hi.\nSpeaker 2:  \nSpeaker 1: Yes?", "talk.txt:2: Speaker 2 says nothing"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("talk.txt").write_text(text)
    with pytest.raises(ValueError, match="^" + message):
        read_script("talk.txt")


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Speaker 1: caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt: not UTF-8 text \(.* at byte 14\)"):
        read_script(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"b\.txt: no such file"):
        read_script(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes("\ufeffSpeaker 1: Grüße.".encode())  # as Windows' editor saves it
    assert read_script(tmp_path / "c.txt").turns == (Turn("1", "Grüße."),)


def test_a_voice_of_nobody_is_refused():
    with pytest.raises(ValueError, match=r"a voice for speaker '3', who says nothing in the script \(speakers: 1, 2\)"):
        script_prompt(Script(TURNS), {"3": None})


def test_voices_are_laid_out_by_number_and_only_those_given():
    script = parse_script("Speaker 2: first.\nSpeaker 1: then.\nSpeaker 3: last.")
    segments = script_prompt(script, {2: TWO, "01": ONE}).segments
    assert [s.content if isinstance(s, Speech) else s.text for s in segments[1:-5]] == [
        " Voice input:\n", " Speaker 0:", ONE, "\n", " Speaker 1:", TWO, "\n",
    ]  # fmt: skip
    assert all(segment.condition and not segment.loss for segment in segments)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_the_pieces_are_those_of_microsofts_processor(case):
    script = parse_script(case["script"])
    clips = dict(zip(script.speakers, [ONE] * len(case["samples"]), strict=False))
    segments = script_prompt(script, clips).segments
    runs = [kind for kind, _ in groupby(case["pieces"])]
    expected = iter(runs[:-1])  # the last one opens the answer
    for segment in segments:
        if isinstance(segment, Text):
            assert segment.text == next(expected)
        else:
            assert [next(expected) for _ in range(3)] == ["<start>", "<latent>", "<end>"]
    assert next(expected, None) is None
    assert runs[-1] == "<start>"


# ---------------------------------------------------------------- to learn from


def given(kind, content):
    return kind(content, condition=True, loss=False)


@pytest.mark.parametrize(
    ("text", "clips", "voices"),
    [
        ("Good morning.", [], {}),
        ("Good morning.", [ONE], {1: ONE}),
        ("Speaker 2: Hi.\nSpeaker 1: Hello.", [ONE, TWO], {1: ONE, 2: TWO}),
    ],
)
def test_a_recording_is_laid_out_as_its_prompt(text, clips, voices):
    speech = Speech(SAID)
    document = Document((*(given(Speech, clip) for clip in clips), given(Text, text), speech))
    expected = script_prompt(parse_script(text), voices).segments
    assert script_document(document).segments == (*expected, speech)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((given(Text, "a"), Text("b")), "condition: true, then the speech, not a given text, text"),
        ((Text("a"), Speech(SAID)), "not text, speech"),
        ((given(Image, PICTURE), Speech(SAID)), "not a given image, speech"),
        ((given(Text, "a"), given(Speech, SAID)), "not a given text, a given speech"),
        ((Speech(SAID),), "script: the script is empty"),
        (
            (given(Speech, ONE), given(Speech, TWO), given(Text, "a"), Speech(SAID)),
            "2 clips of voices for speakers 1;",
        ),
    ],
)
def test_what_a_model_of_scripts_cannot_learn_from_is_named_by_source_and_number(segments, message):
    fine = Document((given(Text, "a"), Speech(SAID)))
    documents = ScriptDocuments([fine, Document(segments)], "mine.jsonl")
    assert len(documents[0].segments) == 5
    with pytest.raises(ValueError, match=f"data source 'mine.jsonl': document 1: .*{message}"):
        documents[1]
