"""The engine: requests that come and go equal each alone, nobody's cache is copied, and slots are free at once."""

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from small import clip, picture, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentlm import Request
from latentlm.generation import active_request as active_request_module
from latentlm.generation import pipeline as pipeline_module
from latentlm.generation.active_request import ActiveRequest, Event
from latentlm.generation.engine import Engine
from latentlm.generation.pipeline import Pipeline
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text


def build_lively(tokenizers: dict, dtype: torch.dtype) -> Pipeline:
    """A model whose text often opens spans."""
    model = small_model(tokenizers).eval()
    with torch.no_grad():
        model.text_head.weight[list(model.special.bod.values())] *= 6
    return Pipeline(model.to(dtype), tokenizers)


@pytest.fixture(scope="module")
def lively(tokenizers) -> Pipeline:
    return build_lively(tokenizers, torch.float32)


@pytest.fixture(scope="module")
def endless(tokenizers) -> Pipeline:
    """A model that never ends a span by itself: a tie to the last bit, and argmax goes on."""
    model = small_model(tokenizers).eval()
    with torch.no_grad():
        model.text_head.weight[[model.special.eod, model.special.proceed]] = 0.0
    return Pipeline(model, tokenizers)


def active(pipeline: Pipeline, request: Request) -> ActiveRequest:
    return pipeline._active_requests([request])[0]


def speech(words: str = "hi", seed: int = 0, guidance: float = 2.0, max_latents: int = 200) -> Request:
    return Request(words, "speech", guidance=guidance, steps=1, seed=seed, max_latents=max_latents)


# ------------------------------------------------------------- equal to each alone


@dataclass
class Record:
    """What a request produced: events but latents, and latents (C,) in order."""

    events: list[tuple] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)

    def add(self, event: Event) -> None:
        is_latent = event.kind == "latent"
        self.events.append((event.kind, len(event.value) if is_latent else event.value))
        if is_latent:
            self.latents.append(event.value)

    def assert_begins(self, whole: "Record") -> None:
        """That this is what `whole` begins with, latents to 1e-4."""
        assert self.events == whole.events[: len(self.events)]
        for mine, other in zip(self.latents, whole.latents, strict=False):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)


def record_alone(pipeline: Pipeline, request: Request) -> Record:
    record = Record()
    for event in Engine.of(pipeline.model, [active(pipeline, request)]).run():
        record.add(event)
    return record


def random_request(choose: random.Random, media: np.random.Generator) -> Request:
    parts = [Text("".join(choose.choices("abcdefgh ", k=choose.randint(1, 40))) + "x")]
    if choose.random() < 0.4:
        parts.insert(choose.randint(0, 1), choose.choice([Image(picture(media)), Speech(clip(media, 90))]))
    to = choose.choice(["text", "image", "speech", "auto"])
    return Request(
        Document(tuple(replace(part, condition=True, loss=False) for part in parts)),
        to,
        guidance=1.0 if to == "text" else choose.choice([1.0, 1.0, 1.7, 3.0]),
        steps=choose.randint(1, 4),
        solver=choose.choice(["dpm++2m", "ddim"]),
        seed=choose.randrange(1000),
        temperature=choose.choice([0.0, 0.7, 2.0]),
        max_tokens=choose.randint(1, 25),
        max_latents=choose.randint(1, 9),
    )


@dataclass
class Visit:
    """What happened while requests came and went: records in order, phases in which requests were cancelled, steps with
    several at work, and the first and the last capacity of the cache."""

    records: list[Record] = field(default_factory=list)
    phases: set[str] = field(default_factory=set)
    num_shared: int = 0
    capacities: tuple[int, int] = (0, 0)


def come_and_go(engine: Engine, added: list[ActiveRequest], choose: random.Random) -> Visit:
    """Requests are added, and cancelled in any phase, at random steps."""
    visit = Visit()
    while len(visit.records) < len(added) or not engine.idle:
        for _ in range(min(choose.choice([0, 0, 0, 1, 2]), len(added) - len(visit.records))):
            assert engine.add(added[len(visit.records)]) == len(visit.records)
            visit.records.append(Record())
        if engine.requests and choose.random() < 0.08:
            gone = choose.choice(list(engine.requests.values()))
            visit.phases |= {name for name in ("queue", "joining", "active") if gone in getattr(engine, name)}
            engine.cancel(gone.handle)
        for event in engine.step():
            visit.records[event.handle].add(event)
        visit.num_shared += len(engine.active) > 2
        visit.capacities = (visit.capacities[0] or engine.cache.capacity, engine.cache.capacity)
    return visit


@pytest.mark.parametrize(("dtype", "num"), [(torch.float64, 200), (torch.float32, 120)])
def test_requests_that_come_and_go_equal_each_alone(tokenizers, monkeypatch, dtype, num):
    """Unlike requests in 7 rows; the cache grows on the way. In fp64 no choice hangs on the order of a sum, in fp32
    matrices are laid out for changing numbers of rows."""
    monkeypatch.setattr(active_request_module, "GROWTH", 2)
    pipeline = build_lively(tokenizers, dtype)
    choose, media = random.Random(0), np.random.default_rng(0)
    requests = [random_request(choose, media) for _ in range(num)]
    added = pipeline._active_requests(requests)
    engine = Engine(pipeline.model, num_slots=7, prefill_chunk=16)
    visit = come_and_go(engine, added, choose)
    assert engine.cache.num_free == 7
    for request, done, record in zip(requests, added, visit.records, strict=True):
        alone = record_alone(pipeline, request)
        record.assert_begins(alone)
        if done.finish_reason != "cancelled":
            assert len(record.events) == len(alone.events)
            assert record.events[-1] == ("finish", done.finish_reason)
    cancelled = sum(done.finish_reason == "cancelled" for done in added)
    answers = [record.events for request, record in zip(requests, visit.records, strict=True) if request.to == "auto"]
    assert sum(kind == "open" for events in answers for kind, _ in events) > num // 20
    assert visit.phases == {"queue", "joining", "active"}
    assert num // 20 < cancelled < num // 3
    assert visit.num_shared > num // 2
    assert 0 < visit.capacities[0] < visit.capacities[1]


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_a_prompt_in_chunks_equals_the_whole(lively, chunk):
    media = np.random.default_rng(2)
    given = {"condition": True, "loss": False}
    document = Document((Text("see ", **given), Image(picture(media), **given), Speech(clip(media), **given)))
    requests = [
        Request(document, "image", guidance=2.0, steps=3, seed=1),
        Request("short", "speech", guidance=3.0, steps=2, seed=2, max_latents=5),
        Request(document, "auto", seed=3, temperature=1.0, max_tokens=9, max_latents=4),
    ]
    records = [Record() for _ in requests]
    engine = Engine(lively.model, num_slots=6, prefill_chunk=chunk)
    for request in requests:
        engine.add(active(lively, request))
    for event in engine.run():
        records[event.handle].add(event)
    for request, record in zip(requests, records, strict=True):
        alone = record_alone(lively, request)
        record.assert_begins(alone)
        assert len(record.events) == len(alone.events)


def test_a_prompt_that_comes_when_its_neighbour_is_half_in_equals_itself_alone(lively):
    requests = [Request("x" * length, "speech", guidance=1.0, steps=1, max_latents=3) for length in (20, 25)]
    engine = Engine(lively.model, num_slots=2, prefill_chunk=8)
    records = [Record(), Record()]
    for request in requests:  # in rows 0 and 1
        engine.add(active(lively, request))
        for event in engine.step():
            records[event.handle].add(event)
    assert engine.cache.lengths == [16, 0]
    for event in engine.run():
        records[event.handle].add(event)
    for request, record in zip(requests, records, strict=True):
        alone = record_alone(lively, request)
        record.assert_begins(alone)
        assert len(record.events) == len(alone.events)


def test_a_long_prompt_joins_in_chunks_while_others_decode(endless):
    engine = Engine(endless.model, num_slots=3, prefill_chunk=8)
    first = engine.add(active(endless, speech("hi", guidance=1.0)))
    engine.step()
    second = engine.add(active(endless, speech("x" * 30, guidance=1.0)))  # and <BOS>, <BOD>: 31 before the last
    third = engine.add(active(endless, speech("y" * 6, guidance=1.0)))  # 7 positions: does not fit beside a chunk of 8
    heard = [[event.handle for event in engine.step() if event.kind == "latent"] for _ in range(5)]
    assert heard == [[first]] * 3 + [[first, second], [first, second, third]]


def test_short_prompts_join_together(endless):
    engine = Engine(endless.model, num_slots=4, prefill_chunk=16)
    engine.add(active(endless, speech("hi", guidance=1.0)))
    engine.step()
    others = [engine.add(active(endless, speech(words, guidance=1.0))) for words in ("one", "three", "four")]
    heard = [[event.handle for event in engine.step() if event.kind == "latent"] for _ in range(2)]
    assert heard == [[0, *others[:2]], [0, *others]]  # of the first pass 2 x 6 positions; a third row would make it 18


# ------------------------------------------------------------------ nobody's cache


class CacheTraffic(TorchDispatchMode):
    """Counts what operators do to the memory of a cache, attention aside: bytes written there, and bytes copied out."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.tensors = (engine.cache.keys, engine.cache.values)  # kept: no other tensor gets their place
        self.places = {tensor.untyped_storage().data_ptr() for tensor in self.tensors}
        self.written = self.copied = self.attended = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inside = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and self._is_inside(x)]
        if not inside:
            return result
        if "attention" in function.name():
            self.attended += 1
        elif "zero_" in function.name():
            self.written += args[0].nbytes
        elif function._schema.is_mutable:  # copy_(to, from), index_put_(to, indices, from)
            to, source = args[0], args[2] if "index_put" in function.name() else args[1]
            self.written += source.nbytes * self._is_inside(to)
            self.copied += source.nbytes * self._is_inside(source)
        elif not self._is_inside(result):  # no view
            self.copied += result.nbytes
        return result

    def _is_inside(self, tensor: torch.Tensor) -> bool:
        is_plain = tensor.layout is torch.strided  # not a matrix that oneDNN has laid out
        return is_plain and tensor.untyped_storage().data_ptr() in self.places


def position_bytes(pipeline: Pipeline) -> int:
    """Keys and values of one position of one row."""
    cache = pipeline.model.transformer.new_cache(1, 1)
    return cache.keys.nbytes + cache.values.nbytes


def test_joining_and_leaving_copies_nobody_elses_cache(endless):
    """Eight long guided requests, and a ninth that joins and leaves: a step writes its new positions, no byte more. At
    the end of a request its own rows become zeros, as far as it wrote them."""
    engine = Engine(endless.model, num_slots=20, capacity=256)
    for seed in range(8):
        engine.add(active(endless, speech("a long one", seed)))
    for _ in range(5):
        engine.step()
    one, prompt = position_bytes(endless), len("short") + 1  # <BOS> short <BOD>: all but the last are prefilled

    def traffic(act) -> tuple[int, int]:
        with CacheTraffic(engine) as counter:
            act()
        assert counter.attended or act is not engine.step
        return counter.written // one, counter.copied

    assert traffic(engine.step) == (16, 0)
    before = engine.cache.keys[:, :16].clone(), list(engine.cache.lengths[:16])
    ninth = engine.add(active(endless, speech("short", 9, max_latents=3)))
    assert traffic(engine.step) == (prompt + 18, 0)  # it joins
    for row, length in enumerate(before[1]):
        assert torch.equal(engine.cache.keys[:, row, :, :length], before[0][:, row, :, :length])
    own = prompt + 4 + 4  # its prompt and what it decoded, its guidance branch
    assert [traffic(engine.step) for _ in range(3)] == [(18, 0), (18, 0), (18 + own, 0)]  # at the last it ends
    assert ninth not in engine.requests
    assert traffic(engine.step) == (16, 0)
    third = engine.active[2].handle
    own = sum(engine.cache.lengths[row] for row in (engine.active[2].row, engine.active[2].null_row))
    assert traffic(lambda: engine.cancel(third)) == (own, 0)  # a hole in the middle
    assert traffic(engine.step) == (14, 0)
    engine.add(active(endless, speech("short", 10)))
    assert traffic(engine.step) == (prompt + 16, 0)  # and somebody else in it
    assert sorted(row for t in engine.active for row in (t.row, t.null_row)) == list(range(16))


def test_a_cache_that_grows_is_copied_and_counted(endless):
    """The counter sees a copy where there is one: the second half of the context is reached by doubling."""
    engine = Engine(endless.model, num_slots=2, capacity=16)
    engine.add(active(endless, speech("some words")))
    assert engine.cache.capacity == 16
    with CacheTraffic(engine) as counter:
        engine.step()
    assert engine.cache.capacity == 12 + 200
    assert counter.copied == 2 * 16 * position_bytes(endless)


# ------------------------------------------------------------------- not finite


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_that_diverges_ends_alone(lively, temperature):
    """Its neighbours, before and behind it in the cache, and who gets its rows equal themselves alone."""
    requests = [replace(speech("abc", seed, 1.0, 9), temperature=temperature) for seed in range(3)]
    requests[1] = replace(requests[1], guidance=1e300)
    requests += [Request("a picture", "image", guidance=1e300, steps=1), Request("text", "auto", temperature=1.0)]
    added = lively._active_requests(requests)
    engine = Engine(lively.model, num_slots=4)
    records = [Record() for _ in added]
    for each in added:
        engine.add(each)
    for event in engine.run():
        records[event.handle].add(event)
    for place in (0, 2, 4):
        alone = record_alone(lively, requests[place])
        records[place].assert_begins(alone)
        assert len(records[place].events) == len(alone.events)
    for place in (1, 3):
        assert added[place].finish_reason == "diverged"
        assert records[place].events[-1] == ("finish", "diverged")
        assert all(latent.isfinite().all() for latent in records[place].latents)
    assert not engine.cache.keys.any()
    assert not engine.cache.values.any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_diverge(tokenizers, temperature):
    pipeline = build_lively(tokenizers, torch.float32)
    with torch.no_grad():
        pipeline.model.text_head.weight.fill_(torch.nan)
    requests = [Request("a", to, temperature=temperature, steps=1, max_latents=3) for to in ("text", "speech", "auto")]
    outputs = pipeline.generate_batch(requests)
    assert [output.finish_reason for output in outputs] == ["diverged"] * 3
    assert outputs[0].segments == (Text(""),)
    assert outputs[1].num_steps <= 1


@pytest.mark.parametrize("to", ["image", "speech"])
def test_an_answer_that_diverged_is_there_and_says_so(lively, to):
    """A picture of which nothing came is whole; streamed and not; `generate`, which says no reason, raises."""
    request = Request("a", to, guidance=1e300, steps=1)
    (output,) = lively.generate_batch([request])
    assert (output.finish_reason, output.segments[0].modality) == ("diverged", to)
    pieces = list(lively.stream(request))
    assert len(pieces) == 1
    with pytest.raises(ValueError, match="the model diverged: its numbers are no longer finite"):
        lively.generate("a", to, guidance=1e300, steps=1)


# --------------------------------------------------------------------- come and go


def test_a_cancelled_request_has_no_further_event_of_the_same_step(endless):
    engine = Engine(endless.model, num_slots=2)
    first, second = (engine.add(active(endless, speech(guidance=1.0, max_latents=3))) for _ in range(2))
    seen = []
    for event in engine.run():
        seen.append(event.handle)
        if event.kind == "latent" and event.handle == first:
            engine.cancel(second)
    assert seen.index(second) < seen.index(first) + 2  # both opened in the first step
    assert seen.count(second) == 1


def test_cancel_frees_the_rows_within_the_call_in_any_phase(endless):
    engine = Engine(endless.model, num_slots=4, prefill_chunk=4)
    decoding, joining, queued = (engine.add(active(endless, speech(words))) for words in ("a", "x" * 20, "b"))
    engine.step()
    states = [engine.requests[handle] for handle in (decoding, joining, queued)]
    assert [states[0]] == engine.active
    assert [states[1]] == engine.joining
    assert [states[2]] == list(engine.queue)
    for handle, num_free in ((joining, 2), (queued, 2), (decoding, 4)):
        engine.cancel(handle)
        assert engine.cache.num_free == num_free
        assert handle not in engine.requests
    assert engine.idle
    assert engine.step() == []
    assert [state.finish_reason for state in states] == ["cancelled"] * 3
    engine.cancel(decoding)  # once more: it has ended already
    assert engine.cache.num_free == 4
    with pytest.raises(AssertionError, match="no request has the handle 3"):
        engine.cancel(3)


def test_what_has_ended_by_itself_keeps_its_reason(endless):
    (done,) = added = [active(endless, speech(max_latents=2))]
    engine = Engine.of(endless.model, added)
    assert [event.value for event in engine.run() if event.kind == "finish"] == ["length"]
    engine.cancel(done.handle)
    assert done.finish_reason == "length"


def test_the_queue_is_first_come_first_served(endless):
    """Three rows: the second guided request waits for two, and the plain one behind it does not overtake it."""
    engine = Engine(endless.model, num_slots=3)
    for guidance, latents in ((2.0, 3), (2.0, 2), (1.0, 1)):
        engine.add(active(endless, speech(guidance=guidance, max_latents=latents)))
    happened = [(event.kind, event.handle) for event in engine.run() if event.kind in ("open", "finish")]
    assert happened == [("open", 0), ("finish", 0), ("open", 1), ("open", 2), ("finish", 2), ("finish", 1)]


def test_a_stream_that_is_closed_frees_its_slot(endless, monkeypatch):
    engines = []

    class Seen(Engine):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            engines.append(self)

    monkeypatch.setattr(pipeline_module, "Engine", Seen)
    pieces = endless.stream(speech())
    next(pieces)
    (engine,) = engines
    assert (engine.idle, engine.cache.num_free) == (False, 0)
    pieces.close()
    assert (engine.idle, engine.cache.num_free) == (True, 2)


def test_an_engine_refuses_what_it_could_never_do(endless):
    with pytest.raises(ValueError, match="a guided request takes two slots; this engine has num_slots 1"):
        Engine(endless.model, num_slots=1).add(active(endless, speech()))
    for name in ("num_slots", "prefill_chunk", "capacity"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Engine(endless.model, **{"num_slots": 1, name: 0})
    engine = Engine(endless.model, num_slots=2)
    with pytest.raises(ValueError, match="the prompt has 2002 positions, the context is 1024"):
        engine.add(active(endless, speech("x" * 2000)))
    assert engine.idle


def test_samplers_of_many_settings_are_not_all_kept(endless):
    from latentlm.generation.engine import MOST_SAMPLERS

    engine = Engine(endless.model, num_slots=1)
    for steps in range(1, MOST_SAMPLERS + 4):
        engine.add(active(endless, Request("a", "speech", steps=steps, guidance=1.0, max_latents=1)))
    assert sum(event.kind == "latent" for event in engine.run()) == MOST_SAMPLERS + 3
    assert len(engine.samplers) == MOST_SAMPLERS
