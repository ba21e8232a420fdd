"""Augmentation of a tokenizer's media: what each does, how often, and that it hangs on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sets import picture

from latentlm.config import ImageTokenizerRecipe, SpeechTokenizerConfig, parse_recipe
from latentlm.data.examples import ImageExample, SpeechExample, random_square, with_gain
from latentlm.media.picture import image_to_tensor
from latentlm.media.sound import Audio

SOUNDS = SpeechTokenizerConfig(sample_rate=8000, strides=(4,), depths=(1, 1), channels=4, max_channels=8, latent_dim=4)


def test_half_of_the_pictures_are_mirrored():
    whole = image_to_tensor(picture(0), 8)
    example, rng = ImageExample(8, flip=True), np.random.default_rng(0)
    found = [example(picture(0), rng) for _ in range(400)]
    mirrored = [torch.equal(each, whole.flip(-1)) for each in found]
    assert all(torch.equal(each, whole) or flipped for each, flipped in zip(found, mirrored, strict=True))
    assert 0.4 < np.mean(mirrored) < 0.6


def test_a_crop_is_a_square_of_a_side_between_the_bounds_at_any_place():
    image = picture(0, 40).resize((40, 25))
    rng = np.random.default_rng(0)
    squares = [random_square(image, 0.6, rng) for _ in range(300)]
    sides = [square.width for square in squares]
    assert all(square.width == square.height for square in squares)
    assert min(sides) == 10
    assert max(sides) == 25
    assert np.mean(sides) == pytest.approx(17.5, abs=1)
    pixels = np.asarray(image)
    corners = {tuple(map(int, np.argwhere((pixels == np.asarray(s)[0, 0]).all(-1))[0])) for s in squares}
    assert max(x for _, x in corners) > 20
    assert ImageExample(8, crop=0.6)(image, rng).shape == (3, 8, 8)


def test_no_augmentation_draws_no_numbers():
    """So that recipes from before it train on the same batches."""
    rng, untouched = np.random.default_rng(0), np.random.default_rng(0)
    ImageExample(8)(picture(0), rng)
    assert rng.random() == untouched.random()
    clip = Audio(torch.linspace(-1, 1, 1000), 8000)
    SpeechExample(SOUNDS, 0.05)(clip, rng)
    untouched.integers(0, 601)
    assert rng.random() == untouched.random()


def test_gain_is_uniform_in_decibels_and_stays_within_one():
    clip = Audio(torch.full((400,), 0.25), 8000)
    example, rng = SpeechExample(SOUNDS, 0.05, gain=20.0), np.random.default_rng(0)
    peaks = np.array([float(example(clip, rng).abs().max()) for _ in range(500)])
    assert peaks.max() == pytest.approx(1.0)  # 12 dB of the 20 are possible
    assert 0.1 < np.mean(peaks > 0.999) < 0.3  # (20 - 12) / 40
    levels = 20 * np.log10(peaks[peaks < 0.999] / 0.25)
    assert levels.min() == pytest.approx(-20, abs=0.5)
    assert np.median(levels) == pytest.approx(-4, abs=2)
    loud = torch.full((1, 4), 2.0)  # beyond 1 already: not quieter than asked for, not louder
    assert torch.equal(with_gain(loud, 6.0), loud)
    assert torch.equal(with_gain(torch.zeros(1, 4), 60.0), torch.zeros(1, 4))


def test_the_same_seed_makes_the_same_examples():
    for example, medium in (
        (ImageExample(8, flip=True, crop=0.5), picture(1, 20)),
        (SpeechExample(SOUNDS, 0.02, gain=3.0), Audio(torch.randn(1000), 8000)),
    ):
        one, two, other = (example(medium, np.random.default_rng(seed)) for seed in (4, 4, 5))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_each_kind_of_recipe_has_its_own():
    recipe = {
        "kind": "image_tokenizer",
        "tokenizer": {},
        "data": {"sources": [{"name": "digits"}], "flip": True, "crop": 0.1},
    }
    assert isinstance(parse_recipe(recipe), ImageTokenizerRecipe)
    with pytest.raises(ValueError, match=r"data\.gain is not for recipes of kind image_tokenizer"):
        parse_recipe(recipe | {"data": {"sources": [{"name": "digits"}], "gain": 3}})
    speech = {"kind": "speech_tokenizer", "tokenizer": {}, "data": {"sources": [{"name": "speech"}], "flip": True}}
    with pytest.raises(ValueError, match=r"data\.flip is not for recipes of kind speech_tokenizer"):
        parse_recipe(speech)
    with pytest.raises(ValueError, match=r"data\.sources\.shards is for language models; they hold latents"):
        parse_recipe(recipe | {"data": {"sources": [{"shards": "x"}]}})
    with pytest.raises(ValueError, match=r"data\.crop"):
        parse_recipe(recipe | {"data": {"sources": [{"name": "digits"}], "crop": 1.0}})
