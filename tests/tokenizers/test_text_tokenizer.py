"""Text ↔ ids: every Unicode string returns exactly, special tokens cannot be typed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.config import TextTokenizerConfig
from latentlm.tokenizers.text import SpecialTokens, TextTokenizer

TEXTS = ["a red circle left of a blue square", "Three four FIVE", "wie geht's?  zwei  Leerzeichen\n", "赤い丸 🍎🍏"] * 5
BYTES = TextTokenizer()
BPE = TextTokenizer.train(TextTokenizerConfig(kind="bpe", vocab_size=320), TEXTS)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips_exactly(text):
    for tokenizer in (BYTES, BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.base_size for i in ids)
    assert BYTES.encode(text) == list(text.encode())


@pytest.mark.parametrize(
    "text", ["  leading", "trailing  ", "\r\n\t", "CaSe", "e\u0301 \u00e9", "\u0000", "don't", "x\u2028y"]
)
def test_awkward_texts_round_trip(text):
    assert BPE.decode(BPE.encode(text)) == text
    assert BYTES.decode(BYTES.encode(text)) == text


def test_bpe_shortens_what_it_was_trained_on():
    assert BPE.base_size == 320
    assert len(BPE.encode(TEXTS[0])) < 0.5 * len(TEXTS[0])


def test_special_tokens_follow_the_base_vocabulary():
    for tokenizer in (BYTES, BPE):
        special = tokenizer.special
        ids = [special.bos, special.eos, special.eod, special.proceed, special.latent, *special.bod.values()]
        assert sorted(ids) == list(range(tokenizer.base_size, tokenizer.vocab_size))
        assert set(special.bod) == {"image", "speech"}
        assert set(special.names()) == set(ids)
        around = [special.bos, *tokenizer.encode("Ab"), special.bod["image"], special.latent, special.eod, special.eos]
        assert tokenizer.decode(around) == "Ab"
    assert BYTES.vocab_size == 263
    assert SpecialTokens.after(256) == BYTES.special


def test_spelling_a_special_token_is_text():
    for name in BYTES.special.names().values():
        assert BYTES.encode(name) == list(name.encode())
        assert max(BPE.encode(name)) < BPE.base_size


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.config == tokenizer.config
    assert loaded.special == tokenizer.special
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tokenizer.json"]


def test_cut_characters_are_shown_as_such():
    assert BYTES.decode(BYTES.encode("é")[:1]) == "\ufffd"


def test_errors_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="UTF-8"):
        BYTES.encode("\ud800")
    with pytest.raises(ValueError, match="id 263"):
        BYTES.decode([263])
    with pytest.raises(ValueError, match="has to be trained"):
        TextTokenizer(TextTokenizerConfig(kind="bpe"))
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        TextTokenizer.load(tmp_path)
    BYTES.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a byte-level"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 1, "knid": "bytes"}')
    with pytest.raises(ValueError, match="did you mean 'kind'"):
        TextTokenizer.load(tmp_path)


def test_classes_are_one_token_each(tmp_path):
    classes = TextTokenizer.train(TextTokenizerConfig(kind="classes"), ["dog", "cat", " cat ", "red fox"])
    assert classes.base_size == 3
    assert [classes.encode(name) for name in ("cat", "dog", " red fox")] == [[0], [1], [2]]
    assert classes.decode([2]) == "red fox"
    assert classes.special.bos is None
    with pytest.raises(ValueError, match=r"no class 'fox', did you mean 'red fox'\? \(this model knows 3: cat … red"):
        classes.encode("fox")
    classes.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.is_classes
    assert again.encode("dog") == [1]
    assert again.fingerprint() == classes.fingerprint()
    BYTES.save(tmp_path / "bytes")
    (tmp_path / "tokenizer.json").write_text((tmp_path / "bytes" / "tokenizer.json").read_text())
    with pytest.raises(ValueError, match=r"tokenizer.json: not a vocabulary of classes file"):
        TextTokenizer.load(tmp_path)
