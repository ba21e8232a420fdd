"""The embedded sets: splits, determinism, exact checks, and speech that a recogniser understands."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latentlm.data.embedded import digits, emoji, phrases, prose, shapes, speech
from latentlm.media.sound import Audio

FOLDER = Path(digits.__file__).parent


@pytest.fixture(scope="session")
def speech_cache(tmp_path_factory):
    pytest.importorskip("espeakng_loader")
    return tmp_path_factory.mktemp("speech-cache")


def test_committed_data_is_small_and_licensed():
    data = [path for path in FOLDER.iterdir() if path.suffix in {".npz", ".png", ".txt"}]
    assert sum(path.stat().st_size for path in data) < 4e6
    for name in ("digits", "emoji", "prose"):
        assert (FOLDER / f"{name}.LICENSE.txt").is_file()


def test_digits_are_the_known_scans():
    train, held_out = digits.load("train"), digits.load("held_out")
    assert (len(train), len(held_out)) == (1500, 297)
    assert [digit.label for digit in train[:10]] == list(range(10))
    assert all(digit.word == digits.WORDS[digit.label] for digit in train + held_out)
    pixels = np.asarray(train[0].image)
    assert pixels.shape == (8, 8, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    # first row of the first scan in the UCI file: 0 0 5 13 9 1 0 0 of 16
    assert pixels[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert digits.load()[7].image is train[7].image


def test_digits_equal_scikit_learns():
    """The sum is that of `load_digits().images.astype(np.uint8).tobytes()` of scikit-learn 1.9.1."""
    ours = [np.asarray(digit.image)[..., 0] for digit in digits.load("train") + digits.load("held_out")]
    scans = np.round(np.stack(ours) * (16 / 255)).astype(np.uint8)
    assert scans.shape == (1797, 8, 8)
    found = hashlib.sha256(scans.tobytes()).hexdigest()
    assert found == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"


def test_emoji_names_pictures_and_atlas_agree():
    everything = emoji.load("train")
    assert len(everything) == 1362
    assert emoji.load("held_out") == []
    names = {item.name: item for item in everything}
    assert len(names) == len(everything)
    assert names["red apple"].character == "🍎"
    assert names["grinning face"].character == "😀"
    assert all(item.image.size == (32, 32) and item.image.mode == "RGB" for item in everything)
    assert len({item.image.tobytes() for item in everything}) == len(everything)
    apple = np.asarray(names["red apple"].image, dtype=float)
    assert (apple[0, 0] == 255).all()  # on white
    red, green, blue = apple[14:26, 8:24].mean((0, 1))
    assert red > 2 * green
    assert red > 2 * blue


def test_emoji_leave_out_skin_tones_and_flag_letters():
    codes = [ord(item.character) for item in emoji.load()]
    assert not [code for code in codes if 0x1F3FB <= code <= 0x1F3FF or 0x1F1E6 <= code <= 0x1F1FF]


@pytest.mark.parametrize("num_emoji", [1, 2, 20, 200, 1362])
def test_emoji_subsets_are_fixed_and_nested(num_emoji):
    chosen = emoji.subset(num_emoji)
    names = [item.name for item in chosen]
    assert len(names) == num_emoji
    assert names == [item.name for item in emoji.subset(num_emoji)]
    assert "red apple" in names
    assert set(names) <= {item.name for item in emoji.subset(min(num_emoji + 5, 1362))}
    assert chosen[0].image is next(item.image for item in emoji.load() if item.name == names[0])


def test_emoji_subset_of_200_stays_what_it_is():
    """The demo's figures hold for this very choice."""
    names = sorted(item.name for item in emoji.subset(200))
    assert {"red apple", "grinning face", "rose", "elephant", "trumpet"} <= set(names)
    assert not [name for name in names if name.startswith(("clock face", "squared", "negative squared"))]


@pytest.mark.parametrize("num_emoji", [0, -1, 1363])
def test_emoji_subset_refuses_impossible_numbers(num_emoji):
    with pytest.raises(ValueError, match=f"subset of {num_emoji} emoji"):
        emoji.subset(num_emoji)


def test_shapes_split_by_whole_combinations():
    train, held_out = set(shapes.things("train")), set(shapes.things("held_out"))
    assert len(train) == 236
    assert len(held_out) == 34
    assert not train & held_out
    for field, values in (("colour", shapes.COLOURS), ("shape", shapes.SHAPES), ("place", shapes.PLACES)):
        assert {getattr(thing, field) for thing in train} == set(values)
    for split, combinations in (("train", train), ("held_out", held_out)):
        shown = {
            thing for index in range(300) for count in (1, 2) for thing in shapes.scene(split, index, count).things
        }
        assert shown == combinations


def test_shapes_are_a_function_of_their_index():
    first = shapes.scene("train", 123).image.tobytes()
    code = (
        "from latentlm.data.embedded import shapes; import sys;"
        "sys.stdout.write(shapes.scene('train', 123).image.tobytes().hex())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert elsewhere == first.hex()


def test_every_drawing_is_read_back_exactly():
    for split in ("train", "held_out"):
        for index in range(120):
            scene = shapes.scene(split, index)
            assert shapes.recognise(scene.image) == scene.things[0]


def test_recognise_reads_soft_noisy_and_larger_drawings():
    from PIL import Image, ImageFilter

    generator = np.random.default_rng(0)
    for index in range(60):
        scene = shapes.scene("train", index)
        soft = scene.image.filter(ImageFilter.GaussianBlur(1.2))
        noisy = np.clip(np.asarray(soft) + generator.normal(0, 15, (32, 32, 3)), 0, 255).astype(np.uint8)
        assert shapes.recognise(Image.fromarray(noisy)) == scene.things[0]
        assert shapes.recognise(scene.image.resize((64, 64))) == scene.things[0]


def test_recognise_sees_nothing_where_nothing_is():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert shapes.recognise(Image.new("RGB", (32, 32), "white")) is None
    assert shapes.recognise(Image.new("RGB", (32, 32), (235, 235, 235))) is None
    assert shapes.recognise(Image.fromarray(noise)) is None


def test_captions_and_answers_check_exactly():
    for index in range(100):
        for count in (1, 2):
            scene = shapes.scene("train", index, count)
            assert shapes.parse_caption(scene.caption) == scene.things
            assert shapes.answer(scene.things, scene.question) == scene.answer
    placed = shapes.parse_caption("a red circle at the top left and a blue ring at the bottom")
    assert shapes.answer(placed, "how many shapes are there?") == "two"
    assert shapes.answer(placed, "what colour is the ring?") == "blue"
    assert shapes.answer(placed, "where is the red circle?") == "top left"
    assert shapes.answer(placed, "what is at the bottom?") == "a blue ring"


@pytest.mark.parametrize(
    "text", ["", "a red circle", "a pink circle at the top", "a red circle at the top left corner"]
)
def test_parse_caption_refuses_other_text(text):
    with pytest.raises(ValueError, match="not a caption"):
        shapes.parse_caption(text)


def test_answer_refuses_what_has_no_single_answer():
    placed = shapes.parse_caption("a red circle at the top and a blue circle at the left")
    with pytest.raises(ValueError, match="no single answer"):
        shapes.answer(placed, "what colour is the circle?")


def test_prose_pieces_fit_and_nothing_is_lost():
    train, held_out = prose.load("train"), prose.load("held_out")
    assert max(map(len, train + held_out)) <= 400
    assert not set(train) & set(held_out)
    assert any("We hold these truths" in piece for piece in train)
    paragraphs = (FOLDER / "prose.txt").read_text().splitlines()
    assert all(" ".join(prose.pieces(paragraph)) == paragraph for paragraph in paragraphs)
    assert sum(map(len, held_out)) > 0.05 * sum(map(len, train))


def test_phrases_split_without_unseen_words():
    train, held_out = phrases.phrases("train"), phrases.phrases("held_out")
    assert (len(train), len(held_out)) == (200, 40)
    assert not set(train) & set(held_out)
    assert set(" ".join(held_out).split()) <= set(" ".join(train).split())
    assert "hello there" in train
    assert "seven red apples" in held_out


def test_speech_plan_holds_out_whole_voices():
    train, held_out = speech.plan("train"), speech.plan("held_out")
    assert (len(train), len(held_out)) == (1440, 180)
    assert len({item.voice for item in train}) == 24
    assert len({item.voice for item in held_out}) == 6
    assert not {item.voice for item in train} & {item.voice for item in held_out}
    assert not {item.text for item in held_out if item.kind == "phrase"} & {item.text for item in train}
    assert len({(item.text, item.voice) for item in train}) == len(train)


def test_speech_clips_are_tidy_and_survive_the_cache(speech_cache):
    utterances = speech.load("held_out", speech_cache)
    assert [(u.text, u.voice) for u in utterances] == [(p.text, p.voice) for p in speech.plan("held_out")]
    for utterance in utterances:
        assert utterance.audio.sample_rate == 16000
        assert 0.3 < utterance.audio.seconds < 2.5
        samples = utterance.audio.samples
        assert samples.dtype == torch.float32
        assert samples.abs().max() <= 0.951
        assert 0.06 < samples.square().mean().sqrt() < 0.09
        assert (samples[:600] == 0).all()
        assert (samples[-600:] == 0).all()
    assert speech.load("held_out", speech_cache)[0].audio is utterances[0].audio
    speech._load.cache_clear()
    (file,) = speech_cache.glob("*")
    assert file.suffix == ".npz"
    again = speech.load("held_out", speech_cache)
    assert all(torch.equal(a.audio.samples, b.audio.samples) for a, b in zip(utterances, again, strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="the library cannot be unloaded between utterances")
def test_every_voice_says_the_same_thing_twice_the_same_way():
    pytest.importorskip("espeakng_loader")
    voices = [voice for split in speech.VOICES.values() for voice in split]
    first = speech.speak([("six apples", voice) for voice in voices])
    # another process, another order, another utterance before each
    mixed = speech.speak(
        [request for voice in reversed(voices) for request in (("four", voice), ("six apples", voice))]
    )
    for voice, clip, again in zip(voices, first, reversed(mixed[1::2]), strict=True):
        assert torch.equal(clip.samples, again.samples), voice
    assert len({clip.samples.numpy().tobytes() for clip in first}) == len(voices)


def test_speaking_reports_an_unknown_voice():
    pytest.importorskip("espeakng_loader")
    with pytest.raises(ValueError, match="no voice 'nobody'"):
        speech.speak([("hello", speech.Voice("nobody", "nobody", 50, 140))])


def test_missing_espeak_is_one_clear_line(monkeypatch, tmp_path):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ValueError, match="pip install espeakng-loader") as caught:
        speech.load("train", tmp_path)
    assert "\n" not in str(caught.value)


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert speech.default_cache_dir() == Path("/somewhere")
    monkeypatch.delenv("LATENTLM_CACHE")
    assert speech.default_cache_dir() == Path("/elsewhere/latentlm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert speech.default_cache_dir() == Path.home() / ".cache" / "latentlm"


def test_espeak_is_never_loaded_into_this_program():
    pytest.importorskip("espeakng_loader")
    code = (
        "import json, sys; from latentlm.data.embedded import speech;"
        "speech.speak([('one', speech.VOICES['train'][0])]);"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else '';"
        "print(json.dumps(['espeakng_loader' in sys.modules, 'libespeak' in maps]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [False, False]


def test_a_recogniser_understands_the_held_out_voices(speech_cache, tmp_path, margin):
    pocketsphinx = pytest.importorskip("pocketsphinx")
    grammar = tmp_path / "digits.gram"
    grammar.write_text(f"#JSGF V1.0;\ngrammar digits;\npublic <digit> = {' | '.join(phrases.DIGITS)};\n")
    decoder = pocketsphinx.Decoder(jsgf=str(grammar), loglevel="FATAL", samprate=16000, bestpath=False, cmn="batch")
    spoken = [u for u in speech.load("held_out", speech_cache) if u.kind == "digit"]
    heard = [_hear(decoder, utterance.audio) for utterance in spoken]
    right = sum(word == utterance.text for word, utterance in zip(heard, spoken, strict=True))
    margin("right", right / len(spoken), at_least=0.9)


def _hear(decoder, audio: Audio) -> str:
    # a recogniser of microphones is thrown by digital silence: pad, and add a trace of noise
    sound = np.pad(audio.samples.numpy(), 4000)
    sound = sound + np.random.default_rng(0).normal(0, 1e-3, len(sound))
    decoder.start_utt()
    decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""
