"""Which lines open a turn, which are words, and which are refused because they could be either."""

import unicodedata

import numpy as np
import pytest
import torch

from latentlm.data.script import Script, Turn, parse_script, script_document, script_prompt
from latentlm.data.speaker_labels import plain_text, speaker_key, speaker_name
from latentlm.errors import UserError
from latentlm.media.sound import Audio
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text

CLIP = Audio(torch.zeros(8), 24000)
GIVEN = {"condition": True, "loss": False}
CLIP = Audio(np.linspace(-0.5, 0.5, 800, dtype=np.float32), 8000)


def turns(text: str) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in parse_script(text).turns]


@pytest.mark.parametrize(
    "label",
    [
        "Speaker 1:", "speaker 1 :", "Speaker1:", "Speaker_1:", "Speaker #1:", "Speaker No. 1:", "SPEAKER_01:",
        "spk_1:", "S1:", "[S1]", "[S1]:", "[SPEAKER_01]:", "[Speaker 1]", "(Speaker 1)", "<Speaker 1>",
        "Speaker １：", "Speaker 1﹕",
        "Speaker 1 (happy):", "Speaker 1 [sad]:", "Speaker 1（开心）：", "(happy) Speaker 1:", "**Speaker 1 (happy):**",
        "**Speaker 1:**", "**Speaker 1**:", "*Speaker 1:*", "***Speaker 1:***", "__Speaker 1__:", "`Speaker 1`:",
        '"Speaker 1":', "“Speaker 1”:", "'Speaker 1':",
        "- Speaker 1:", "-Speaker 1:", "* Speaker 1:", "• **Speaker 1:**", "1. Speaker 1:", "> Speaker 1:",
        "## Speaker 1:", "[00:01:02] Speaker 1:", "00:01 - 00:02 Speaker 1:", "[0.00 --> 4.20] SPEAKER_01:",
        "Speaker 1 [00:01:02]:",
        "\ufeffSpeaker 1:", "\u200bSpeaker\u200b 1\u200b:", "Speaker 1\u200d:", "Speaker\u00a01:",
        "\u2068Speaker 1\u2069:",
    ],
)  # fmt: skip
@pytest.mark.parametrize("gap", ["", " "])
def test_labels_of_speaker_1(label, gap):
    assert turns(f"{label}{gap}Hi, you.\n{label} Yes?") == [("1", "Hi, you."), ("1", "Yes?")]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Speaker Ana:", "Ana"),
        ("speaker ana:", "ana"),
        (unicodedata.normalize("NFD", "Speaker José:"), "José"),
        ("Speaker हिन्दी:", "हिन्दी"),
        ("Speaker น้ำฝน:", "น้ำฝน"),
        ("Speaker مُحَمَّد:", "مُحَمَّد"),
        ("Speaker 小明：", "小明"),
        ("Speaker O’Neil:", "O'Neil"),
        ("Speaker Dr. Anna Maria von der Heide:", "Dr. Anna Maria von der Heide"),
        ('Speaker "the old man":', "the old man"),
        ("Speaker “Anna”:", "Anna"),
        ("**Speaker Jean-Luc** (aside):", "Jean-Luc"),
        ("SPEAKER MARY ANN:", "MARY ANN"),
        ("[Speaker Anna]", "Anna"),
        ("SPEAKER_00:", "0"),
    ],
)
def test_names(label, name):
    assert turns(f"{label} Hi.") == [(name, "Hi.")]


def test_several_tags_in_a_line_are_several_turns():
    assert turns("[S1] Hi. [S2] Hello.\n[S1] Bye.") == [("1", "Hi."), ("2", "Hello."), ("1", "Bye.")]


def test_a_line_in_bold_or_in_quotation_marks_as_a_whole():
    assert turns('**Speaker 1: Hi.**\n"Speaker 2: It\'s 9:15."') == [("1", "Hi."), ("2", "It's 9:15.")]
    assert turns("Speaker 1: **Hi** there") == [("1", "**Hi** there")]  # emphasis within the words stays


@pytest.mark.parametrize(
    "line",
    [
        "Speaker volume is low: turn it up.",
        "Speaker, please: sit down.",
        "The speaker said: no.",
        "[Speaker coughs] Excuse me.",
        "As in [S1] of the supplement: yes.",
        "It is 9:15.",
        "9:15 it was.",
        "https://example.org",
    ],
)
def test_sentences_are_words(line):
    assert turns(line) == [("1", line)]
    assert turns(f"Speaker 2: Hi.\n{line}") == [("2", f"Hi. {line}")]


@pytest.mark.parametrize(
    "text",
    ["Warning: thin ice.", "Speakers: a history.", "One line.\n\nOther: with a colon.", "a\nNote: b\nc\nd\nNote: e"],
)
def test_a_name_without_the_word_speaker_is_words_where_most_lines_have_none(text):
    assert turns(text) == [("1", " ".join(text.split()))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Speaker 2\nHello.", "script:1: 'Speaker 2' has no colon; write 'Speaker 1: words'"),
        ("Speaker 1: Hi.\nSpeaker Anna\nHello.", "script:2: 'Speaker Anna' has no colon"),
        ("Speaker 1 - Hi.", "'Speaker 1 - Hi.' has no colon"),
        ("| Speaker 1 | Hi. |", "has no colon"),
        ("Speaker: Hi.", "'Speaker' names no speaker"),
        ("Speaker 1 sadly: Hi.", "'Speaker 1 sadly' is more than a number; write 'Speaker 1: words'"),
        ("Speaker 1, sadly: Hi.", "is '1, sadly' a speaker?"),
        ("Speaker 1/Speaker 2: Hi.", "is '1/Speaker 2' a speaker?"),
        ("Speakers 1 and 2: Hi.", "is no label that is known"),
        ("Speaker Anna whispers: Hi.", "is 'Anna whispers' a speaker? write a name with capitals or in quotation"),
        ("Speaker mary ann: Hi.", "is 'mary ann' a speaker?"),
        ("Speaker 1: seven Speaker 2: two", "'Speaker 2:' stands within a line; each speaker begins a line"),
        ("<b>Speaker 1:</b> Hi.", "'Speaker 1:' stands within a line"),
        ("Anna (Speaker 1): Hi.", "'Speaker 1):' stands within a line"),
        ("«Speaker 1»: Hi.", "'«Speaker 1»: Hi.' is no label that is known; write 'Speaker 1: words'"),
        ("Ｓｐｅａｋｅｒ 1: Hi.", "is no label that is known"),
        ("1: Hi.\n2: Hello.", "script:1: '1:' is no label; write 'Speaker 1: words'"),
        ("Speaker 1: Hi.\n2: Hello.", "script:2: '2:' is no label"),
        (
            "Speaker 1: Hi.\n\nBen: Hello.",
            "script:3: 'Ben:' is no label; write 'Speaker Ben: words' or, if no Ben speaks, join",
        ),
        ("Speaker Ben: Hi.\nBen (sad): Hello.", "script:2: 'Ben:' is no label"),
        (
            "Anna: Hi.\nBen: Hello.",
            "script:1: 'Anna:' is no label; write 'Speaker Anna: words' or, if no Anna speaks, write the text as one",
        ),
        ("Anna: Hi.\nand on\n**Ben:** Hello.\nand on", "script:1: 'Anna:' is no label"),
        ("Q: a\nand\non\nand on\nA: b\nand\non\nQ: c", "script:1: 'Q:' is no label"),
        ("小明：你好\n小红：你好", "script:1: '小明:' is no label"),
        ("sprecher 1: hallo\nsprecher 2: hallo", "script:1: 'sprecher 1:' is no label"),
    ],
)
def test_what_looks_like_a_label_and_is_none_is_refused(text, message):
    with pytest.raises(UserError) as refused:
        parse_script(text)
    assert message in str(refused.value)


def test_a_line_of_lower_case_goes_on_with_the_turn():
    assert turns("Speaker 1: Hi.\nhe said: no") == [("1", "Hi. he said: no")]


def test_names_that_differ_in_case_are_one_speaker():
    script = parse_script("Speaker Anna: a\nSpeaker ANNA: b\nspeaker anna: c")
    assert script.speakers == {"Anna": 0}
    assert Script((Turn("Anna", "a"), Turn("anna", "b"))).speakers == {"Anna": 0}
    assert script_prompt(script, {"anna": CLIP}).segments[3].content is CLIP


def test_one_function_normalises_names():
    assert {speaker_name(name) for name in (1, "1", "01", "Speaker 1", "SPEAKER_01", "S1", " １ ")} == {"1"}
    assert speaker_key("  ANNA ") == speaker_key('"Anna"') == speaker_key("anna\u200b")
    assert speaker_name(unicodedata.normalize("NFD", "José")) == "José"


@pytest.mark.parametrize("second", ["1", "01", "Speaker 1"])
def test_two_voices_of_one_speaker_are_refused(second):
    with pytest.raises(UserError, match=f"two voices for speaker 1 \\(the second is given for '{second}'\\)"):
        script_prompt(parse_script("Speaker 1: Hi."), {1: "a", second: "b"})


def test_characters_without_width_leave_but_for_joiners_that_are_spelling():
    assert plain_text("\ufeffa\u200bb\u00adc\u2060 \u200d") == "abc "
    assert plain_text("می\u200cخواهم श्\u200dर") == "می\u200cخواهم श्\u200dर"
    assert plain_text(unicodedata.normalize("NFD", "über")) == "über"


def test_moods_and_time_stamps_are_left_out_and_said():
    script = parse_script("[00:01] Speaker 1 (happy): Hi.\nSpeaker Ben: Hello.\nSpeaker 1: Bye.")
    assert script.text == "Hi.\nHello.\nBye."
    assert script.describe() == "2 speakers: 1 (2 turns), Ben (1 turn); not read: [00:01], (happy)"
    assert parse_script("One\ntwo").describe() == "no speaker lines: one voice reads its 2 lines"


def test_curly_quotes_become_straight_in_prompts_of_scripts_alone():
    script = parse_script("Speaker 1: It’s ‘so’, “he” said.")
    assert script.text == "It’s ‘so’, “he” said."
    said = [segment.text for segment in script_prompt(script, {}).segments]
    assert " Speaker 0: It's 'so', \"he\" said.\n" in said
    given = Text("It’s.", **GIVEN)
    learnt = script_document(Document((given, Speech(CLIP))))
    assert " Speaker 0: It's.\n" in [segment.text for segment in learnt.segments[:-1]]


def test_training_reads_the_labels_that_generation_reads():
    text = "**Speaker Ana (happy):** Hola.\n- " + unicodedata.normalize("NFD", "Speaker José: Hola, Ana.")
    document = Document((Text(text, **GIVEN), Speech(CLIP)))
    texts = [segment.text for segment in script_document(document).segments[:-1]]
    assert texts[-3:-1] == [" Speaker 0: Hola.\n", " Speaker 1: Hola, Ana.\n"]
    bad = Document((Text("Anna: a\nBen: b", **GIVEN), Speech(CLIP)))
    with pytest.raises(UserError, match="script:1: 'Anna:' is no label"):
        script_document(bad)
