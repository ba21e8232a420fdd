"""Events become pieces as they come and segments when whole, and both are the same answer."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from small import small_model

from latentlm import Request
from latentlm.generation.active_request import Event
from latentlm.generation.answers import AnswerReader, KeptRun, as_segments, streamed_run
from latentlm.generation.pipeline import Pipeline
from latentlm.media.sound import Audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Text


@pytest.fixture(scope="module")
def lively(tokenizers) -> Pipeline:
    """A model whose text often opens spans."""
    model = small_model(tokenizers).eval()
    with torch.no_grad():
        model.text_head.weight[list(model.special.bod.values())] *= 6
    return Pipeline(model, tokenizers)


def joined(pieces: list) -> list:
    """Pieces or segments with neighbours of one kind put together: texts, samples (k,), pixels."""
    runs: list = []
    for piece in pieces:
        value = piece.text if isinstance(piece, Text) else piece
        value = value.content if isinstance(value, Image | Speech) else value
        value = value.samples if isinstance(value, Audio) else value
        if isinstance(value, Pillow.Image):
            runs.append(np.asarray(value, np.int16))
        elif runs and type(runs[-1]) is type(value):
            runs[-1] = runs[-1] + value if isinstance(value, str) else torch.cat((runs[-1], value))
        else:
            runs.append(value)
    return runs


def test_the_pieces_of_a_stream_are_the_segments_of_the_whole(lively):
    kinds = set()
    for seed in range(12):
        request = Request("go on", "auto", seed=seed, steps=2, temperature=1.0, max_tokens=12, max_latents=4)
        pieces, (output,) = list(lively.stream(request)), lively.generate_batch([request])
        assert all(isinstance(piece, str | Audio | Pillow.Image) for piece in pieces)
        streamed, whole = joined(pieces), joined(list(output.segments))
        assert [type(run) for run in streamed] == [type(run) for run in whole]
        for one, two in zip(streamed, whole, strict=True):
            if isinstance(one, str):
                assert one == two
            else:  # pixels to one level, samples to 1e-4
                np.testing.assert_allclose(one, two, rtol=0, atol=1 if isinstance(one, np.ndarray) else 1e-4)
        kinds.add(tuple(segment.modality for segment in output.segments))
    assert {"text", "image", "speech"} <= {name for names in kinds for name in names}
    assert any(len(names) > 2 for names in kinds)


def test_half_a_character_waits_for_its_other_bytes(tokenizers):
    reader = AnswerReader(lambda name: streamed_run(name, tokenizers, ()))
    a, *accented = tokenizers["text"].encode("aé")
    assert [reader.read(Event(0, "token", token)) for token in (a, *accented)] == [["a"], [], ["é"]]
    assert reader.read(Event(0, "token", accented[0])) == []
    assert reader.read(Event(0, "finish", "length")) == ["\ufffd"]  # nothing else will come


def test_a_span_that_the_end_cuts_off_is_given_whole(tokenizers):
    """The context may be full within a span of speech: what the decoder held back comes with the end."""
    latents = torch.randn(5, tokenizers["speech"].latent_dim, generator=torch.Generator().manual_seed(0))
    events = [Event(0, "open", "speech"), *(Event(0, "latent", row) for row in latents), Event(0, "finish", "length")]
    stream, whole = AnswerReader(lambda name: streamed_run(name, tokenizers, ())), AnswerReader(KeptRun)
    pieces = [piece for event in events for piece in stream.read(event)]
    runs = [run for event in events for run in whole.read(event)]
    ((segment,),) = as_segments([runs], tokenizers)
    assert len(segment.content.samples) == 5 * tokenizers["speech"].hop
    samples = torch.cat([piece.samples for piece in pieces])
    torch.testing.assert_close(samples, segment.content.samples, atol=1e-5, rtol=1e-4)


def test_sound_that_was_heard_is_not_decoded_again(tokenizers):
    heard = [Event(0, "open", "speech"), Event(0, "latent", torch.zeros(5)), Event(0, "sound", torch.ones(16))]
    heard.append(Event(0, "close", "speech"))
    stream, whole = AnswerReader(lambda name: streamed_run(name, tokenizers, {"speech"})), AnswerReader(KeptRun)
    (piece,) = [piece for event in heard for piece in stream.read(event)]
    ((segment,),) = as_segments([[run for event in heard for run in whole.read(event)]], tokenizers)
    assert torch.equal(piece.samples, torch.ones(16))
    assert torch.equal(segment.content.samples, torch.ones(16))


def test_each_modality_of_all_answers_is_decoded_in_one_go(lively, monkeypatch):
    calls = []

    def count(name, decode):
        return lambda latents: calls.append((name, len(latents))) or decode(latents)

    for name in ("image", "speech"):
        tokenizer = lively.tokenizers[name]
        monkeypatch.setattr(tokenizer, "decode", count(name, tokenizer.decode))
    requests = [Request("a", to, steps=1, seed=seed, max_latents=3) for seed in (0, 1) for to in ("image", "speech")]
    assert len(lively.generate_batch([*requests, Request("a", max_tokens=2, to="text")])) == 5
    assert sorted(calls) == [("image", 2), ("speech", 2)]
