"""Generation: a batch of unlike requests = each alone, guidance = the two branches by hand, ends, streams, refusals."""

import numpy as np
import pytest
import torch
from small import clip, picture, small_model

from latentlm import Request
from latentlm.diffusion.solvers import make_plan, sample
from latentlm.errors import UserError
from latentlm.generation.pipeline import Pipeline
from latentlm.media.sound import Audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text


def text(words: str) -> Document:
    return Document((Text(words, condition=True, loss=False),))


def unlike_requests() -> list[Request]:
    generator = np.random.default_rng(1)
    return [
        Request(text("seven"), "image", guidance=2.0, steps=4, seed=1),
        Request(text("a longer prompt"), "image", guidance=1.0, steps=4, seed=2),
        Request(text("hi"), "speech", guidance=3.0, steps=3, seed=3, max_latents=9, temperature=1.0),
        Request(Document((Image(picture(generator), condition=True, loss=False),)), "text", seed=4, max_tokens=7),
        Request(Document((Speech(clip(generator), condition=True, loss=False),)), "text", temperature=1.0, seed=5,
                max_tokens=12),
        Request(text("xy"), "image", guidance=2.0, steps=6, seed=6),
        Request(text("go on"), "auto", guidance=2.0, steps=2, seed=8, temperature=3.0, max_tokens=40, max_latents=5),
    ]  # fmt: skip


def same(one, two) -> bool:
    if isinstance(one, Text):
        return one.text == two.text
    if isinstance(one, Image):
        difference = np.asarray(one.content, np.int16) - np.asarray(two.content, np.int16)
        return bool(abs(difference).max() <= 1)
    return torch.allclose(one.content.samples, two.content.samples, atol=1e-4)


def assert_same(one, two) -> None:
    assert one.finish_reason == two.finish_reason
    assert [s.modality for s in one.segments] == [s.modality for s in two.segments]
    assert all(same(a, b) for a, b in zip(one.segments, two.segments, strict=True))


def test_a_batch_of_unlike_requests_equals_each_alone(pipeline):
    requests = unlike_requests()
    for request, output in zip(requests, pipeline.generate_batch(requests), strict=True):
        assert_same(output, pipeline.generate_batch([request])[0])


def test_guided_requests_equal_each_alone_wherever_the_unguided_stand(pipeline):
    requests = [
        Request(text("ab"), "image", guidance=guidance, steps=4, seed=seed)
        for seed, guidance in enumerate((1.0, 2.0, 1.0, 3.0))
    ]
    for request, output in zip(requests, pipeline.generate_batch(requests), strict=True):
        assert_same(output, pipeline.generate_batch([request])[0])


def test_the_seed_reaches_the_noise_of_the_head(pipeline):
    one, two, again = (pipeline.generate("a", "image", steps=3, seed=seed)[0] for seed in (1, 2, 1))
    assert np.array_equal(np.asarray(one), np.asarray(again))
    assert not np.array_equal(np.asarray(one), np.asarray(two))


def test_num_answers_use_consecutive_seeds(pipeline):
    several = pipeline.generate("a", "image", steps=3, seed=5, num=3)
    single = pipeline.generate("a", "image", steps=3, seed=7)[0]
    assert abs(np.asarray(several[2], np.int16) - np.asarray(single, np.int16)).max() <= 1


def test_a_pipeline_shows_what_it_is_in_one_line(pipeline):
    size = sum(parameter.numel() for parameter in pipeline.model.parameters())
    assert repr(pipeline) == f"<Pipeline: text, image, speech; {size:,} parameters>"


def test_a_prompt_that_is_no_request_is_refused(pipeline):
    for call in (lambda: pipeline.generate_batch(["red apple"]), lambda: next(pipeline.stream("red apple"))):
        with pytest.raises(UserError, match=r"expected a latentlm\.Request, .* not str"):
            call()


def test_guidance_is_two_branches_fed_by_the_same_latent(pipeline):
    """The engine against a plain loop without cache: condition = prompt, null = <BOD> alone, both fed one latent."""
    model, guidance, seed = pipeline.model, 2.5, 3
    special = model.special
    ids = [special.bos, *pipeline.tokenizers["text"].encode("ab"), special.bod["image"]]
    generator = torch.Generator().manual_seed(seed)
    plan = make_plan(model.heads["image"].process, "dpm++2m", 5)
    latents: list[torch.Tensor] = []

    def hidden(prefix):
        x = model.embed_tokens(torch.tensor(prefix))
        if latents:
            x = torch.cat((x, model.embed_latents["image"](torch.stack(latents))))
        count = torch.arange(len(x))[None]
        return model.transformer(x[None], count, torch.zeros_like(count))[:, -1]

    with torch.inference_mode():
        for _ in range(4):
            c, u = hidden(ids), hidden([special.bod["image"]])

            def predict(x, t, c=c, u=u):
                t = torch.tensor([t])
                conditional, null = (model.heads["image"](x, t, h) for h in (c, u))
                return null + guidance * (conditional - null)

            latents.append(sample(plan, predict, torch.randn(6, generator=generator)[None])[0])
    expected = pipeline.tokenizers["image"].decode([torch.stack(latents)])[0]
    got = pipeline.generate("ab", "image", guidance=guidance, steps=5, seed=seed)[0]
    assert abs(np.asarray(got, np.int16) - np.asarray(expected, np.int16)).max() <= 1


def test_guidance_and_steps_change_the_result(pipeline):
    base = np.asarray(pipeline.generate("a", "image", steps=3)[0])
    assert not np.array_equal(base, np.asarray(pipeline.generate("a", "image", steps=3, guidance=4.0)[0]))
    assert not np.array_equal(base, np.asarray(pipeline.generate("a", "image", steps=9)[0]))


def test_the_prompt_reaches_the_picture(pipeline):
    one, two = (np.asarray(pipeline.generate(prompt, "image", steps=3)[0]) for prompt in ("a", "b"))
    assert not np.array_equal(one, two)


def test_a_voice_clip_reaches_the_speech(pipeline):
    generator = np.random.default_rng(0)
    said = [
        pipeline.generate("a", "speech", steps=3, voice=voice, max_latents=3)[0].samples
        for voice in (None, clip(generator))
    ]
    assert said[0].shape != said[1].shape or not torch.allclose(*said)


def test_speech_ends_by_the_text_head_or_by_the_limit(tokenizers, endless):
    request = Request(text("a"), "speech", steps=2, max_latents=6)
    output = endless.generate_batch([request])[0]
    assert output.finish_reason == "length"
    assert output.segments[0].content.samples.shape[-1] == 6 * tokenizers["speech"].hop
    weight, special = endless.model.text_head.weight, endless.model.special
    with torch.no_grad():
        weight[special.eod] = _first_hidden(endless, "a")
        weight[special.proceed] = -weight[special.eod]
    output = endless.generate_batch([request])[0]
    assert output.finish_reason == "stop"
    assert output.segments[0].content.samples.shape[-1] == 0


def _first_hidden(pipeline, words: str) -> torch.Tensor:
    prompt = pipeline.encoder(text(words), closed=False)
    pipeline.encoder.open_span(prompt, "speech")
    ids = torch.tensor([prompt.ids])
    count = torch.arange(len(prompt))[None]
    return pipeline.model.transformer(pipeline.model.embed_tokens(ids), count, torch.zeros_like(count))[0, -1]


def test_text_stops_at_the_limit_and_at_the_context(pipeline):
    output = pipeline.generate_batch([Request(text("a"), "text", max_tokens=5, temperature=5.0)])[0]
    assert output.finish_reason in {"length", "stop"}
    assert output.num_steps <= 5
    context = pipeline.model.config.transformer.context_length
    long = Request(text("x" * (context - 3)), "text", max_tokens=50, temperature=0.0)
    output = pipeline.generate_batch([long])[0]
    assert output.num_steps <= 3


@pytest.fixture
def endless(pipeline):
    """A model that never ends a span by itself: both answers of the text head are exactly 0, and argmax goes on."""
    weight, special = pipeline.model.text_head.weight, pipeline.model.special
    backup = weight.detach().clone()
    with torch.no_grad():
        weight[[special.eod, special.proceed]] = 0.0  # a tie to the last bit, whatever the order of summation
    yield pipeline
    with torch.no_grad():
        weight.copy_(backup)


def test_streamed_equals_whole(endless):
    pipeline = endless
    request = Request(text("hi"), "speech", steps=3, seed=3, max_latents=7)
    whole = pipeline.generate_batch([request])[0].segments[0].content
    pieces = list(pipeline.stream(request))
    assert all(isinstance(piece, Audio) for piece in pieces)
    assert len(pieces) > 2
    streamed = torch.cat([piece.samples for piece in pieces])
    torch.testing.assert_close(streamed, whole.samples, atol=1e-5, rtol=1e-4)

    request = Request(text("hi"), "text", max_tokens=9, temperature=2.0)
    assert "".join(pipeline.stream(request)) == pipeline.generate_batch([request])[0].segments[0].text


@pytest.fixture
def choosing(monkeypatch):
    """Lets a test choose what is picked: what it lists, one a pick, then and where that is forbidden the letter a."""

    def choose(*wanted: int) -> None:
        left = list(wanted)

        def pick(logits, temperature, generator):
            token = left.pop(0) if left else ord("a")
            return token if logits[token] > -torch.inf else ord("a")

        monkeypatch.setattr("latentlm.generation.tokens.pick_token", pick)

    return choose


def test_a_span_that_begins_restarts_the_guidance_of_its_own_request_alone(pipeline, choosing):
    """The first begins within the third's picture, the second within the first's, the first again in the second's."""
    a, bod, eos = ord("a"), pipeline.model.special.bod["image"], pipeline.model.special.eos
    requests = [
        Request(text("one"), "auto", guidance=2.0, steps=2, seed=1),
        Request(text("another"), "auto", guidance=3.0, steps=2, seed=2),
        Request(text("xy"), "image", guidance=2.5, steps=2, seed=3),
    ]
    choosing(a, a, bod, a, a, a, bod, bod, eos, eos)  # of the first two, step by step
    together = pipeline.generate_batch(requests)
    own = [a, bod, bod, eos], [a, a, a, a, bod, eos], []
    for request, output, choices in zip(requests, together, own, strict=True):
        choosing(*choices)
        assert [s.modality for s in output.segments if s.modality != "text"] == ["image"] * max(1, choices.count(bod))
        assert_same(output, pipeline.generate_batch([request])[0])


def test_a_model_that_ends_at_once_answers_nothing(pipeline, choosing):
    choosing(pipeline.model.special.eos)
    output, other = pipeline.generate_batch([Request(text("a"), "auto"), Request(text("a"), "image", steps=2)])
    assert (output.segments, output.finish_reason) == ((), "stop")
    assert other.segments[0].modality == "image"
    choosing(pipeline.model.special.eos)
    assert pipeline.generate("a", "auto") == [[]]


@pytest.mark.parametrize(
    ("name", "left", "opened"),
    [("image", 5, True), ("image", 4, True), ("image", 3, False), ("image", 0, False), ("speech", 0, False)],
)
def test_a_span_without_room_is_not_begun(pipeline, choosing, name, left, opened):
    """`left` positions are behind the prompt; <BOD> and all four latents but the last need one each."""
    context = pipeline.model.config.transformer.context_length
    choosing(pipeline.model.special.bod[name])
    requests = [Request(text("x" * (context - 1 - left)), "auto", steps=2), Request(text("a"), "image", steps=2)]
    output, other = pipeline.generate_batch(requests)
    assert output.finish_reason == "length"
    assert (output.segments[0].modality == name) == opened
    assert other.finish_reason == "stop"


def test_spans_that_a_model_lacks_are_not_begun(tokenizers, choosing):
    mute = Pipeline(small_model({name: tokenizers[name] for name in ("text", "image")}).eval(), dict(tokenizers))
    choosing(mute.model.special.bod["speech"])
    (answer,) = mute.generate("a", "auto", max_tokens=1)
    assert all(isinstance(part, str) for part in answer)


@pytest.mark.parametrize("to", ["image", "auto"])
def test_a_picture_that_fills_the_context_is_on_disk(pipeline, choosing, to):
    room = pipeline.model.config.transformer.context_length - 4
    request = Request(text("x" * (room - 1)), to, steps=2)  # <BOS>, text, <BOD> and three of four latents
    choosing(pipeline.model.special.bod["image"])
    (output,) = pipeline.generate_batch([request])
    (whole,) = output.segments
    choosing(pipeline.model.special.bod["image"])
    (piece,) = pipeline.stream(request)
    assert same(Image(piece), whole)
    assert output.finish_reason == {"image": "stop", "auto": "length"}[to]


def test_an_answer_that_lasts_closes_only_what_is_open(tokenizers, choosing):
    """<EOD> and <BOD> at any place of an answer in several spans: what is streamed is what is decoded as a whole."""
    model = small_model(tokenizers)
    model.config = model.config.model_copy(update={"stop_at": "eos"})
    lasting = Pipeline(model.eval(), tokenizers)
    go_on, end, begin, stop = range(4)  # of what a position chooses from
    for choices in ([go_on, end, end, go_on, go_on, begin, go_on, end, stop], [go_on, end, end, end, end, go_on]):
        choosing(*choices)
        request = Request(text("a"), "speech", steps=2, max_latents=9 if stop in choices else 4)
        (output,) = lasting.generate_batch([request])
        assert output.finish_reason == ("stop" if stop in choices else "length")
        choosing(*choices)
        pieces = list(lasting.stream(request))
        assert all(isinstance(piece, Audio) for piece in pieces)
        whole = torch.cat([segment.content.samples for segment in output.segments])
        torch.testing.assert_close(torch.cat([piece.samples for piece in pieces]), whole, atol=1e-5, rtol=1e-4)


def test_score_counts_the_targets(pipeline):
    scores = pipeline.score(Document((Text("abcd"),)))
    assert scores.num_text_bytes == 4
    assert scores.num_text_tokens == 5  # and <EOS>
    assert scores.bits_per_byte == pytest.approx(scores.text_nats / np.log(2) / 4)
    generator = np.random.default_rng(0)
    both = pipeline.score(Document((Text("a", condition=True, loss=False), Image(picture(generator)))))
    assert set(both.diffusion) == {"image"}
    assert both.num_text_bytes == 0


def test_a_text_is_scored_as_a_document_of_it_and_nothing_else_is(pipeline):
    assert pipeline.score("abcd") == pipeline.score(Document((Text("abcd"),)))
    with pytest.raises(ValueError, match=r"score takes a text or a latentlm.Document, not list"):
        pipeline.score(["abcd"])


def test_a_document_past_the_context_has_no_score(pipeline):
    assert pipeline.score(Document((Text("x" * 1023),))).num_text_tokens == 1024
    with pytest.raises(ValueError, match="the document has 1025 positions, the context is 1024"):
        pipeline.score(Document((Text("x" * 1024),)))
