"""Warped copies: deterministic, near the original, of the training split alone."""

import numpy as np
import pytest

from latentlm.config import SourceConfig
from latentlm.data.sources import documents
from latentlm.data.warp import warp, with_warped_copies
from latentlm.types import Document, Image, Text


def picture_of(document):
    return next(segment.content for segment in document.segments if isinstance(segment, Image))


def test_copies_follow_the_originals_and_keep_the_words():
    config = SourceConfig(name="digits", task="image_to_text", limit=20, warped_copies=2)
    plain = documents(config.model_copy(update={"warped_copies": 0}))
    found = documents(config)
    assert len(found) == 60
    for number, document in enumerate(found):
        assert document.segments[1].text == plain[number % 20].segments[1].text
        assert (picture_of(document).tobytes() == picture_of(plain[number % 20]).tobytes()) == (number < 20)
    assert picture_of(found[20]).tobytes() != picture_of(found[40]).tobytes()
    assert documents(config)[25] is found[25], "asked again, the same media objects"


def test_held_out_pictures_are_never_warped():
    config = SourceConfig(name="digits", task="image_to_text", warped_copies=2)
    assert len(documents(config, "held_out")) == 297


def test_a_copy_is_the_same_everywhere_and_like_its_original():
    picture = picture_of(documents(SourceConfig(name="emoji", task="text_to_image", limit=1))[0])
    first, second = (warp(picture, np.random.default_rng(3)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert (first.size, first.mode) == (picture.size, picture.mode)
    pixels, copy = (np.asarray(image, dtype=float) for image in (picture, first))
    assert 0 < np.abs(pixels - copy).mean() < 60


def test_a_source_without_pictures_is_refused():
    with pytest.raises(ValueError, match="warped_copies: the source has no pictures"):
        with_warped_copies([Document((Text("one"),))], 1)
