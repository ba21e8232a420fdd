"""Speech is judged by a recogniser that hears real clips and does not hear words in noise."""

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline
from margins import seed

pytest.importorskip("pocketsphinx")
pytest.importorskip("espeakng_loader")

from latentlm.config import parse_recipe
from latentlm.data.embedded import phrases, speech
from latentlm.evaluation.evaluate import evaluate
from latentlm.evaluation.recogniser import Recogniser, num_word_errors
from latentlm.evaluation.seen import Seen
from latentlm.evaluation.speech import Utterance, length_ratios, word_error_rate
from latentlm.media.sound import Audio


@pytest.fixture(scope="module")
def real():
    return speech.load("held_out")


@pytest.fixture(scope="module")
def clips(real):
    found: dict[str, list[Audio]] = {}
    for item in real:
        found.setdefault(item.text, []).append(item.audio)
    return found


def test_recogniser_hears_real_digits_and_not_shuffled_labels(real, margin):
    judge = Recogniser.of_words(phrases.DIGITS)
    words = [item for item in real if item.kind == "digit"]
    heard = [judge.hear(item.audio) for item in words]
    right, shuffled = (
        np.mean([a == item.text for a, item in zip(heard, labels, strict=True)])
        for labels in (words, words[1:] + words[:1])
    )
    margin("right", right, at_least=0.95)
    margin("right by shuffled labels", shuffled, at_most=0.2)


def test_recogniser_does_not_hear_words_in_noise_or_silence(margin):
    judge = Recogniser.of_words(phrases.DIGITS)
    generator = torch.Generator().manual_seed(seed())
    noises = [Audio(0.1 * torch.randn(8000, generator=generator), 16000) for _ in range(60)]
    right = [judge.hear(noise) == phrases.DIGITS[i % 10] for i, noise in enumerate(noises)]
    margin("right in noise", np.mean(right), at_most=0.3)
    assert isinstance(judge.hear(Audio(torch.zeros(0), 16000)), str)


def test_recogniser_forgets_what_it_heard_before(real):
    judge = Recogniser.of_words(phrases.DIGITS)
    first, second = real[0].audio, real[5].audio
    alone = Recogniser.of_words(phrases.DIGITS).hear(second)
    judge.hear(first)
    assert judge.hear(second) == alone


def test_recogniser_of_phrases_hears_unseen_ones(real, margin):
    judge = Recogniser.of_phrases()
    spoken = [item for item in real if item.kind == "phrase"][:20]
    said = [Utterance(item.text, item.audio, True, judge.hear(item.audio)) for item in spoken]
    margin("word error rate", word_error_rate(said), at_most=0.1)
    moved = [
        Utterance(item.text, item.audio, True, other.heard)
        for item, other in zip(said, said[1:] + said[:1], strict=True)
    ]
    margin("word error rate by other labels", word_error_rate(moved), at_least=0.5)


def test_word_errors():
    assert num_word_errors("seven red apples", "seven red apples") == 0
    assert num_word_errors("seven apples", "seven red apples") == 1
    assert num_word_errors("a seven red apples", "seven red apples") == 1
    assert num_word_errors("seven blue apples", "seven red apples") == 1
    assert num_word_errors("", "seven red apples") == 3
    assert num_word_errors("one two", "") == 2


def test_length_ratio_is_against_the_same_word(real):
    word = real[0]
    doubled = Audio(word.audio.samples.repeat(2), word.audio.sample_rate)
    real_one = Utterance(word.text, word.audio, True, "")
    ratios = length_ratios([real_one, Utterance(word.text, doubled, True, "")], [real_one])
    assert ratios == pytest.approx([1.0, 2.0])


def test_real_clips_pass_and_wrong_ones_do_not(clips, margin):
    good = evaluate(FakePipeline(clips=clips), tasks=["speech"], quick=True, seed=seed()).figures
    margin("words heard, real", good["speech.word_ratio"].value, at_least=0.9)
    assert good["speech.stop_rate"].value == 1
    assert good["speech.transcribe_accuracy"].value == 1
    margin("word error rate of phrases", good["speech.phrase_wer"].value, at_most=0.2)
    margin("words heard of the real clips", good["speech.word_accuracy_real"].value, at_least=0.95)
    bad = evaluate(FakePipeline(wrong=1.0, clips=clips, ends=False), tasks=["speech"], quick=True, seed=seed()).figures
    margin("words heard, wrong", bad["speech.word_ratio"].value, at_most=0.5)
    assert bad["speech.stop_rate"].value == 0
    assert bad["speech.transcribe_accuracy"].value == 0
    margin("phrases heard, wrong", bad["speech.phrase_accuracy"].value, at_most=0.2)


def test_phrases_are_left_out_of_a_model_of_words_and_the_report_says_so(clips):
    report = evaluate(FakePipeline(clips=clips), tasks=["speech"], quick=True, seen=Seen(phrases=False))
    assert report.figures["speech.word_ratio"].value >= 0.9
    assert not [name for name in report.figures if "phrase" in name]
    assert (
        report.to_dict()["protocol.speech.phrase"]
        == "not measured, the model was trained on words alone, not on phrases"
    )


@pytest.mark.parametrize(("sources", "phrases"), [(["spoken_digits"], False), (["spoken_digits", "speech"], True)])
def test_a_recipe_tells_whether_it_has_phrases(sources, phrases):
    listed = [{"name": name, "task": "text_to_speech"} for name in sources]
    recipe = parse_recipe({"kind": "latentlm", "tokenizers": {"speech": "tiny"}, "data": {"sources": listed}})
    assert Seen.of(recipe) == Seen(frozenset(sources), [], phrases)


def test_speech_reconstruction_falls_with_noise(clips, margin):
    pipeline = FakePipeline(clips=clips)
    values = {}
    for noise in (0.001, 0.1):
        pipeline.tokenizers["speech"].noise = noise
        values[noise] = evaluate(pipeline, tasks=["reconstruction"], quick=True).figures
    name = "reconstruction.speech_word_accuracy"
    margin("words heard, little noise", values[0.001][name].value, at_least=0.9)
    margin("words heard, much noise", values[0.1][name].value, at_most=0.9)
    if "reconstruction.speech_stoi" in values[0.1]:
        assert values[0.001]["reconstruction.speech_stoi"].value > values[0.1]["reconstruction.speech_stoi"].value
