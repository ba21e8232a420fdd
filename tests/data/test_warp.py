"""Warped copies: deterministic, near the original, of the training split alone."""

import numpy as np
import pytest
from PIL import Image as PILImage

import latentlm.data.warp as warp_module
from latentlm.config import SourceConfig
from latentlm.data.sources import documents
from latentlm.data.warp import warp, with_augmented_copies
from latentlm.modalities.image import Image
from latentlm.types import Document, Text


def picture_of(document):
    return next(segment.content for segment in document.segments if isinstance(segment, Image))


def test_copies_follow_the_originals_and_keep_the_words():
    config = SourceConfig(name="digits", task="image_to_text", limit=20, augmented_copies=2)
    plain = documents(config.model_copy(update={"augmented_copies": 0}))
    found = documents(config)
    assert len(found) == 60
    for number, document in enumerate(found):
        assert document.segments[1].text == plain[number % 20].segments[1].text
        assert (picture_of(document).tobytes() == picture_of(plain[number % 20]).tobytes()) == (number < 20)
    assert picture_of(found[20]).tobytes() != picture_of(found[40]).tobytes()
    assert documents(config)[25] is found[25], "asked again, the same media objects"


def test_held_out_pictures_are_never_warped():
    config = SourceConfig(name="digits", task="image_to_text", augmented_copies=2)
    assert len(documents(config, "held_out")) == 297


def test_a_copy_is_the_same_everywhere_and_like_its_original():
    picture = picture_of(documents(SourceConfig(name="emoji", task="text_to_image", limit=1))[0])
    first, second = (warp(picture, np.random.default_rng(3)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert (first.size, first.mode) == (picture.size, picture.mode)
    pixels, copy = (np.asarray(image, dtype=float) for image in (picture, first))
    assert 0 < np.abs(pixels - copy).mean() < 60


def test_a_source_without_pictures_is_refused():
    with pytest.raises(ValueError, match="augmented_copies: the source has no pictures"):
        with_augmented_copies([Document((Text("one"),))], 1)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (13, 6)])
def test_a_warp_by_nothing_gives_the_picture_back(monkeypatch, size):
    for name in ("ANGLE", "SHIFT", "SCALE"):
        monkeypatch.setattr(warp_module, name, 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(warp(PILImage.fromarray(pixels), np.random.default_rng(1))), pixels)


def test_a_shift_moves_the_whole_picture_along_its_axes(monkeypatch):
    for name in ("ANGLE", "SCALE"):
        monkeypatch.setattr(warp_module, name, 0.0)
    monkeypatch.setattr(warp_module, "SHIFT", 0.25)
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[4:8, 8:16] = 255
    rng = np.random.default_rng(0)
    rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2)  # turn and shear, scale
    shift = rng.uniform(-0.25, 0.25, 2) * (32, 16)
    moved = np.asarray(warp(PILImage.fromarray(pixels), np.random.default_rng(0)), dtype=float)
    rows, columns = np.indices(moved.shape)
    centre = np.array([(moved * columns).sum(), (moved * rows).sum()]) / moved.sum()
    assert centre == pytest.approx(np.array([11.5, 5.5]) - shift, abs=0.1)


def test_copies_of_small_pictures_are_as_sharp_as_what_is_read_later():
    pictures = [
        picture_of(document) for document in documents(SourceConfig(name="digits", task="image_to_text", limit=200))
    ]
    copies = [warp(picture, np.random.default_rng(number)) for number, picture in enumerate(pictures)]
    assert _variation(copies) > 0.9 * _variation(pictures), "bilinear interpolation leaves 0.80"


def _variation(pictures) -> float:
    """Mean step between neighbouring pixels."""
    pixels = np.stack([np.asarray(picture, dtype=float) for picture in pictures])
    return sum(np.abs(np.diff(pixels, axis=axis)).mean() for axis in (1, 2))
