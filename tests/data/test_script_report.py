"""What `latentlm data validate` says of the speakers in scripts."""

import numpy as np

from latentlm.data.script_report import describe_speakers, spoken_text
from latentlm.media.sound import Audio
from latentlm.modalities.speech import Speech
from latentlm.types import Text

GIVEN = {"condition": True, "loss": False}
CLIP = Audio(np.linspace(-0.5, 0.5, 800, dtype=np.float32), 8000)


def test_the_speakers_of_many_texts_are_described():
    texts = ["Speaker 1: Hi.\nSpeaker 2: Hi.", "seven", "Speaker 2: Hi.", "Speaker 2"]
    assert describe_speakers((f"a:{number}", text) for number, text in enumerate(texts, 1)) == [
        "2 scripts, 2 speakers: 1 (1 turn), 2 (2 turns)",
        "1 text that models of scripts refuse, the first: a:4:1: 'Speaker 2' has no colon; write 'Speaker 1: words'",
    ]
    assert describe_speakers([("a:1", "seven"), ("a:2", "two\nthree")]) == []


def test_a_script_is_what_is_given_before_speech_that_is_learnt():
    given = (Text("a", **GIVEN), Speech(CLIP, **GIVEN), Text("b", **GIVEN))
    assert spoken_text((*given, Speech(CLIP))) == "a\nb"
    assert spoken_text((*given, Text("c"))) is None
    assert spoken_text((Speech(CLIP),)) is None
    assert spoken_text((Text("a"), Speech(CLIP))) is None
