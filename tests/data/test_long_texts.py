"""Long texts: every piece fits, the pieces joined are the text, and nothing else is split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.data.long_texts import SplitTexts, cuts, is_plain_text
from latentlm.types import Document, Text


def encode(text: str) -> bytes:
    return text.encode()


def pieces(text: str, most: int) -> list[str]:
    bounds = [0, *cuts(text, encode, most), len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds)]


@given(text=st.text(st.sampled_from("ab é文.\n !"), min_size=1, max_size=300), most=st.integers(8, 40))
@settings(max_examples=200, deadline=None)
def test_pieces_fit_and_joined_are_the_text(text, most):
    found = pieces(text, most)
    assert "".join(found) == text
    assert all(piece and len(encode(piece)) <= most for piece in found)


def test_a_text_is_cut_after_a_paragraph_else_a_line_a_sentence_a_word():
    assert pieces("one two.\n\nthree four five", 16) == ["one two.\n\n", "three four five"]
    assert pieces("one two.\nthree four five", 16) == ["one two.\n", "three four five"]
    assert pieces("One two three. Four five.", 20) == ["One two three. ", "Four five."]
    assert pieces("one two three four five", 16) == ["one two three ", "four five"]
    assert pieces("a" * 20, 8) == ["a" * 8, "a" * 8, "a" * 4]


def test_pieces_take_the_place_of_their_document():
    texts = ["zero", "one " * 8, "two", "three " * 6, "four"]
    documents = [Document((Text(text),)) for text in texts]
    found = SplitTexts(documents, {i: cuts(texts[i], encode, 16) for i in (1, 3)}, "prose")
    assert "".join(document.segments[0].text for document in found) == "".join(texts)
    numbers = [found.find(index)[0] for index in range(len(found))]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(5))
    assert found[0] == documents[0]
    assert found.place(0) == "prose: document 0"
    assert found.place(1) == "prose: document 1, piece 1 of 2"
    assert found[len(found) - 1] == documents[-1]
    with pytest.raises(IndexError):
        found[len(found)]


def test_only_one_text_that_is_all_target_is_plain():
    assert is_plain_text(Document((Text("a"),)))
    assert not is_plain_text(Document((Text("a"), Text("b"))))
    assert not is_plain_text(Document((Text("a", condition=True, loss=False), Text("b"))))
    assert not is_plain_text(Document((Text("a", condition=True, loss=True),)))
