"""Speech of a user's own texts: the words heard, the voice, and no clip encoded twice."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline

from latentlm.data import documents
from latentlm.data.script import script_document
from latentlm.evaluation import speaker, spoken
from latentlm.evaluation.documents import evaluate_documents
from latentlm.evaluation.protocol import Protocol
from latentlm.evaluation.recogniser import normalise
from latentlm.evaluation.report import Report
from latentlm.evaluation.spoken import spoken_words
from latentlm.media.sound import Audio


def tone(hertz: float, seconds: float = 0.5) -> Audio:
    return Audio(0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(round(16000 * seconds)) / 16000), 16000)


def measured(pipeline, held_out, training=()) -> Report:
    report = Report()
    evaluate_documents(pipeline, Protocol(steps=2), report, held_out, "own.jsonl", {"speech": [training]})
    return report


@pytest.fixture
def deaf(monkeypatch):
    """No recogniser is loaded."""
    monkeypatch.setattr(spoken, "speech_judge_for", lambda texts: "not asked for")


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_words_of_a_closed_vocabulary_are_heard(wrong, margin):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("espeakng_loader")
    from latentlm.data.embedded import speech

    items = [item for item in speech.load("held_out") if item.kind == "digit"]
    clips: dict[str, list[Audio]] = {}
    for item in items:
        clips.setdefault(item.text, []).append(item.audio)
    own = [documents.text_to_speech(f"{item.text.capitalize()}!", item.audio) for item in items]
    capitals = {f"{word.capitalize()}!": found for word, found in clips.items()}
    figures = measured(FakePipeline(wrong, capitals), own[:20], own[20:60]).figures
    assert "a grammar of the 10 texts" in figures["documents.speech_wer"].protocol
    margin("words heard of real clips", figures["documents.speech_accuracy"].reference, at_least=0.85)
    margin(
        "words heard as they were said", 1 - abs(1 - wrong - figures["documents.speech_accuracy"].value), at_least=0.7
    )
    assert figures["documents.speech_wer"].value == pytest.approx(1 - figures["documents.speech_accuracy"].value)


def test_what_the_recogniser_cannot_know_is_said():
    pytest.importorskip("pocketsphinx")
    own = [documents.text_to_speech("привет мир", tone(200)), documents.text_to_speech("zażółć gęślą", tone(300))]
    report = measured(FakePipeline(clips={s.segments[0].text: [tone(200)] for s in own}), own)
    assert report.left_out["documents.speech_wer"].startswith("not measured, the recogniser knows English words only")


def test_many_texts_are_an_open_vocabulary():
    pytest.importorskip("pocketsphinx")
    from latentlm.evaluation.speech_judge import speech_judge_for

    assert not speech_judge_for(["the first sentence", "the second sentence"]).closed
    assert not speech_judge_for(["always this"] * 20).closed  # nothing to confuse it with
    assert speech_judge_for(["yes", "No!"] * 10).closed
    assert speech_judge_for(["!"]) == "its texts have no words"


def test_texts_are_compared_as_the_recogniser_writes_them():
    assert normalise("Hello, World!  It’s 3 o'clock — 'quoted'.") == "hello world it's 3 o'clock quoted"


def test_the_words_of_a_script_are_its_turns():
    document = documents.text_to_speech("Speaker 1: Good morning.\nSpeaker 2: Hello: you.", tone(200))
    assert spoken_words(script_document(document)) == "Good morning. Hello: you."
    assert spoken_words(documents.text_to_speech("Good morning.", tone(200), tone(300))) == "Good morning."


def test_voices_are_compared_with_the_given_ones_where_the_encoder_is_installed(monkeypatch, deaf):
    own = [documents.text_to_speech(str(i), tone(200), voice=tone(205)) for i in range(3)]
    low, high = ({str(i): [tone(hertz)] for i in range(3)} for hertz in (210, 3000))

    class Encoder:
        def __init__(self, device, verbose):
            assert (device, verbose) == ("cpu", False)

        def embed_utterance(self, samples):
            spectrum = np.abs(np.fft.rfft(samples, 16000))[:8000].reshape(80, 100).sum(1)
            return spectrum / np.linalg.norm(spectrum)

    monkeypatch.setitem(sys.modules, "resemblyzer", SimpleNamespace(VoiceEncoder=Encoder))
    monkeypatch.setattr(speaker, "available", lambda: True)
    monkeypatch.setattr(spoken, "speaker_encoder_available", lambda: True)
    speaker._encoder.cache_clear()
    alike, unlike = (measured(FakePipeline(clips=c), own).figures["documents.speaker_similarity"] for c in (low, high))
    speaker._encoder.cache_clear()
    assert alike.value > 0.9 > 0.5 > unlike.value
    assert alike.reference == unlike.reference > 0.9
    assert speaker.speaker_similarity(tone(200), Audio(torch.zeros(16000), 16000)) == 0


def test_a_missing_speaker_encoder_is_said(monkeypatch, deaf):
    monkeypatch.setattr(spoken, "speaker_encoder_available", lambda: False)
    clips = {"a": [tone(200)]}
    report = measured(FakePipeline(clips=clips), [documents.text_to_speech("a", tone(200), voice=tone(205))])
    assert report.left_out["documents.speaker_similarity"] == "not measured, resemblyzer is not installed"
    report = measured(FakePipeline(clips=clips), [documents.text_to_speech("a", tone(200))])
    assert "documents.speaker_similarity" not in report.left_out  # no voice is given


def test_real_answers_are_encoded_once(monkeypatch, deaf):
    pipeline = FakePipeline(clips={"a": [tone(200)], "b": [tone(300)]})
    tokenizer, encoded = pipeline.tokenizers["speech"], []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda media: encoded.extend(map(id, media)) or encode(media))
    own = [documents.text_to_speech(text, clips[0]) for text, clips in pipeline.clips.items()]
    report = Report()
    cache = spoken.LatentCache({"speech": tokenizer})
    for document in own:
        cache.resolve(document)
    spoken.evaluate_spoken(pipeline, Protocol(), report, "speech", own, (), cache, "own.jsonl")
    assert len(encoded) == len(set(encoded)) == 2
    assert report.figures["documents.length_ratio"].value == pytest.approx(1)
