"""The generation engine: decodes different requests in one batch, one position of each per step (PAPER §1.4).
Requests join and leave between steps.

Place in the flow: 4, `ActiveRequest`s ──▶ events, which `answers.py` turns into text, pictures and sound.

    handle = engine.add(request)    queue a request until the cache has rows for it
    events = engine.step()          admit requests, prefill one chunk of their prompts, decode one position of each
    engine.cancel(handle)           end a request in any phase; its rows are free at once

A request owns one row of the cache for its condition and, if it is guided, a second one for its guidance branch (PAPER
§1.5). That branch holds <BOD> and the sampled latents alone and starts anew with every span. Rows never move. The same
sampled latent is the next input of both branches. Where the modality has a second tokenizer (PAPER §6), each latent is
decoded to sound at once, and the features of that sound are added to the input.
Each request has its own random generator, so its answer does not depend on the requests beside it. A request whose
logits or latent are not finite ends alone, with the reason "diverged".
Legend: `A` active requests, `R` cache rows of a step, `M` requests that sample a latent, `T` positions of a chunk,
`D` width, `C` latent channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import UserError
from ..model.heads import Sampler, SamplerOptions
from ..model.latentlm import LatentLM
from ..model.prepack import Prepacker
from ..tokenizers.streaming import FeatureStream
from .active_request import ActiveRequest, Event, LatentInput, States, check_length, expected_length, take
from .tokens import TokenChooser, are_finite

PREFILL_CHUNK = 512
"""Most positions of one prefill pass: most prompts fit, and it is short compared with a step of many latents."""
MOST_SAMPLERS = 16
"""Samplers that are kept, one per modality, solver and number of steps."""


class Engine:
    """Decodes requests in `num_slots` rows of one cache; a guided request needs two rows. More requests wait in order.

    streams: modality with a second tokenizer -> function that makes the decoder of a new span.
    prefill_chunk: most positions of one pass over prompts while other requests decode; otherwise most positions per
    prompt.
    capacity: positions per row from the start; None: what the first requests are expected to need. A cache that is too
    short doubles, which copies it (`KVCache.reserve`); a server should give the whole context length.
    """

    def __init__(
        self,
        model: LatentLM,
        streams: Mapping[str, Callable[[], FeatureStream]] | None = None,
        *,
        num_slots: int,
        prefill_chunk: int = PREFILL_CHUNK,
        capacity: int | None = None,
    ):
        for name, value in (("num_slots", num_slots), ("prefill_chunk", prefill_chunk), ("capacity", capacity)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        self.model = model
        self.streams = streams or {}
        self.prefill_chunk = prefill_chunk
        self.special = model.special
        self.device = model.embed_tokens.weight.device
        self.limit = model.config.transformer.context_length
        self.cache = model.transformer.new_cache(num_slots, min(self.limit, capacity or 0))
        self.transformer = Prepacker(model.transformer)
        self.tokens = TokenChooser(model, self.limit)
        self.samplers: dict[tuple[str, SamplerOptions], Sampler] = {}
        self.requests: dict[int, ActiveRequest] = {}  # all that have not ended, by handle
        self.queue: deque[ActiveRequest] = deque()  # without rows
        self.joining: list[ActiveRequest] = []  # with rows, the prompt not completely in the cache
        self.active: list[ActiveRequest] = []  # decoding, in the order of their rows
        self._num_added = 0
        self._cancelled: set[int] = set()  # since the last step began

    @classmethod
    def of(
        cls,
        model: LatentLM,
        requests: Sequence[ActiveRequest],
        streams: Mapping[str, Callable[[], FeatureStream]] | None = None,
    ) -> Engine:
        """An engine with rows for all of `requests`, which are added with the handles 0, 1, …"""
        engine = cls(model, streams, num_slots=sum(request.num_rows for request in requests))
        for request in requests:
            engine.add(request)
        return engine

    # --------------------------------------------------------------------- interface

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not self.requests

    def add(self, request: ActiveRequest) -> int:
        """Queue a request; returns the handle that its events carry.

        Raises UserError for a prompt that does not fit the context, and for a guided request in an engine of one row.
        """
        check_length(request, self.limit, self.model.modalities.get(request.to))
        if request.num_rows > self.cache.num_rows:
            raise UserError(f"a guided request takes two slots; this engine has num_slots {self.cache.num_rows}")
        assert request.handle is None, "a request is added once"
        request.handle, self._num_added = self._num_added, self._num_added + 1
        self.requests[request.handle] = request
        self.queue.append(request)
        return request.handle

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Process at most one chunk of prompts, then one position of every decoding request; returns the events."""
        self._cancelled.clear()
        self._admit()
        events = self._prefill()
        if self.active:
            events += self._decode()
            events += self._retire()
        return events

    def run(self) -> Iterator[Event]:
        """Yields events as they happen, until no request is left. A request that is cancelled between two events yields
        no further one."""
        while not self.idle:
            for event in self.step():
                if event.handle not in self._cancelled:
                    yield event

    def cancel(self, handle: int) -> None:
        """End a request in any phase, with the finish reason "cancelled" and no further event. A request that has ended
        already stays as it is."""
        assert 0 <= handle < self._num_added, f"no request has the handle {handle}"
        if handle in self.requests:
            self._end(self.requests[handle], "cancelled")
            self._cancelled.add(handle)

    # --------------------------------------------------------------- admission and removal

    def _admit(self) -> None:
        """Give the free rows to the requests that have waited longest: first to conditions, so that their rows are
        contiguous, then to guidance branches."""
        admitted, num_free = [], self.cache.num_free
        while self.queue and self.queue[0].num_rows <= num_free:
            admitted.append(self.queue.popleft())
            num_free -= admitted[-1].num_rows
        for request in admitted:
            request.row = self.cache.claim()
        for request in admitted:
            request.null_row = self.cache.claim() if request.is_guided else None
        if admitted:
            lengths = [expected_length(request, self.model.modalities.get(request.to)) for request in admitted]
            self.cache.reserve(min(self.limit, max(lengths)), self.limit)
            self.joining += admitted

    def _end(self, request: ActiveRequest, reason: str) -> None:
        """Remove a request from its phase and release its rows."""
        request.finish_reason, request.inputs, request.stream = reason, None, None
        del self.requests[request.handle]
        for phase in (self.queue, self.joining, self.active):
            if request in phase:
                phase.remove(request)
        for row in (request.row, request.null_row):
            if row is not None:
                self.cache.release(row)

    def _retire(self) -> list[Event]:
        """End the requests that are finished or whose row is full; closes a picture that its last latent completed."""
        events: list[Event] = []
        for request in list(self.active):
            if self.cache.lengths[request.row] >= self.limit:
                if request.is_open and request.span_length == self.model.modalities[request.mode].num_latents:
                    events += self._close(request)
                request.finish_reason = request.finish_reason or "length"
            if request.finish_reason is not None:
                events.append(Event(request.handle, "finish", request.finish_reason))
                self._end(request, request.finish_reason)
        return events

    # ------------------------------------------------------------------ prefill

    def _prefill(self) -> list[Event]:
        """Feed the next chunk of the joining prompts. A request starts to decode when its prompt is in the cache up to
        the last token, which is the input of the first step."""
        group = self._next_prompts()
        if group:
            start = self.cache.lengths[group[0].row]
            pieces = [self._inputs(request)[start : start + self.prefill_chunk] for request in group]
            x = pad_sequence(pieces, batch_first=True)  # (B, T, D)
            self.cache.reserve(start + x.shape[1], self.limit)
            self.model.transformer.extend(x, self.cache.open(x.shape[1], [request.row for request in group]))
            for request, piece in zip(group, pieces, strict=True):
                self.cache.lengths[request.row] += len(piece)
        ready = [request for request in self.joining if self._missing(request) == 0]
        events: list[Event] = []
        for request in ready:
            self.joining.remove(request)
            request.inputs, request.pending = None, request.prompt.ids[-1]
            if request.prompt.opens is not None:
                events.append(self._open(request, request.prompt.opens))
        self.active = sorted(self.active + ready, key=lambda request: request.row)
        return events

    def _missing(self, request: ActiveRequest) -> int:
        """Positions of a joining request's prompt that have to be fed before it can decode."""
        return len(request.prompt) - 1 - self.cache.lengths[request.row]

    def _next_prompts(self) -> list[ActiveRequest]:
        """The requests of the next pass, longest waiting first.

        All have as many positions in the cache, in neighbouring rows, so that the pass works on a view of the cache.
        While other requests decode, the pass has at most `prefill_chunk` positions in all.
        """
        group: list[ActiveRequest] = []
        for request in (request for request in self.joining if self._missing(request) > 0):
            if group:
                beside = request.row == group[-1].row + 1
                if not beside or self.cache.lengths[request.row] != self.cache.lengths[group[0].row]:
                    break
                width = min(self.prefill_chunk, max(self._missing(member) for member in (*group, request)))
                if self.active and width * (len(group) + 1) > self.prefill_chunk:
                    break
            group.append(request)
        return group

    def _inputs(self, request: ActiveRequest) -> Tensor:
        """The embedded prompt without its last token (L - 1, D). The latents of its media are sampled once, by the
        request's generator."""
        if request.inputs is None:
            x = self.model.embed_tokens(torch.tensor(request.prompt.ids[:-1], device=self.device))
            for span in request.prompt.spans:
                values = span.latents.to(self.device).sample(request.generator)
                index = torch.arange(span.start, span.start + len(values), device=self.device)
                x = self.model.embed_span(x, span.modality, values, index)
            request.inputs = x
        return request.inputs

    # ------------------------------------------------------------------- decode

    def _decode(self) -> list[Event]:
        """Feed every active request its pending input; give each its next token or latent."""
        writing = [request for request in self.active if request.mode == "text"]
        spans = [request for request in self.active if request.mode != "text"]
        state = self._forward([request for request in spans if request.is_guided])
        lengths = [self.cache.lengths[request.row] for request in writing]
        events: list[Event] = []
        for request, token in zip(writing, self.tokens.in_text(writing, state, lengths), strict=True):
            events += self._write(request, token)
        return events + self._go_on(spans, state)

    def _forward(self, guided: list[ActiveRequest]) -> States:
        """One position of all active requests through the transformer, and of the guidance branches of `guided`."""
        owners = {request.row: place for place, request in enumerate(self.active)}
        owners |= {request.null_row: owners[request.row] for request in guided}
        rows = sorted(owners)
        places = {row: place for place, row in enumerate(rows)}
        self.cache.reserve(max(self.cache.lengths[row] for row in rows) + 1, self.limit)
        x = take(self._embed([request.pending for request in self.active]), [owners[row] for row in rows])  # (R, D)
        starting = [request for request in guided if self.cache.lengths[request.null_row] == 0]
        if starting:  # also where a class takes the place of <BOD> in the condition
            bods = torch.tensor([self.special.bod[request.mode] for request in starting], device=self.device)
            index = torch.tensor([places[request.null_row] for request in starting], device=self.device)
            x = x.index_copy(0, index, self.model.embed_tokens(bods))
        hidden = self.transformer(len(rows)).extend(x[:, None], self.cache.open(1, rows))[:, 0]  # (R, D)
        for row in rows:
            self.cache.lengths[row] += 1
        return States(hidden, places)

    def _embed(self, inputs: list[int | LatentInput]) -> Tensor:
        """The embedded inputs (A, D): tokens, or latents with the features of their sound."""
        tokens = torch.tensor([v if isinstance(v, int) else self.special.latent for v in inputs], device=self.device)
        x = self.model.embed_tokens(tokens)  # (A, D)
        by_modality: dict[str, list[int]] = {}
        for place, value in enumerate(inputs):
            if not isinstance(value, int):
                by_modality.setdefault(value.modality, []).append(place)
        for name, places in by_modality.items():
            index = torch.tensor(places, device=self.device)
            values = torch.stack([inputs[place].latent for place in places])
            features = None
            if name in self.streams:
                features = torch.stack([inputs[place].features for place in places]).to(self.device)
            x = self.model.embed_span(x, name, values, index, features, index)
        return x

    def _write(self, request: ActiveRequest, token: int | None) -> list[Event]:
        """Make a token of text the next input; <EOS> ends the request, <BOD> begins a span."""
        if token is None:
            request.finish_reason = "diverged"
            return []
        if token == self.special.eos:
            request.finish_reason = "stop"
            return []
        name = next((name for name, bod in self.special.bod.items() if bod == token), None)
        if name is not None:
            return [self._begin(request, name)]
        request.pending = token
        request.num_tokens += 1
        if request.num_tokens >= request.max_tokens:
            request.finish_reason = "length"
        return [Event(request.handle, "token", token)]

    def _go_on(self, spans: list[ActiveRequest], state: States) -> list[Event]:
        """End each span or sample its next latent, for requests of equal modality and sampler options together."""
        events: list[Event] = []
        groups: dict[tuple[str, SamplerOptions], list[ActiveRequest]] = {}
        for request, token in zip(spans, self.tokens.in_spans(spans, state), strict=True):
            if token == self.special.proceed:
                if not request.is_open:  # speech that goes on after its <EOD>: a new span, without a <BOD>
                    events.append(self._open(request, request.mode))
                groups.setdefault((request.mode, SamplerOptions(request.solver, request.steps)), []).append(request)
            elif token is None or token == self.special.eos:
                request.finish_reason = "diverged" if token is None else "stop"
            else:
                events += self._leave(request, token)
        for key, members in groups.items():
            latents = self._sample(key, members, state)
            for request, latent, finite in zip(members, latents, are_finite(latents), strict=True):
                if finite:
                    events += self._feed_latent(request, latent)
                else:
                    request.finish_reason = "diverged"
        return events

    def _sample(self, key: tuple[str, SamplerOptions], members: list[ActiveRequest], state: States) -> Tensor:
        """Next latents (M, C) of `members`, which share modality and sampler options."""
        guided = [place for place, request in enumerate(members) if request.is_guided]
        nulls = scale = places = None
        if guided:
            nulls = state.null_of([members[place] for place in guided])
            scale = torch.tensor([[float(members[place].guidance)] for place in guided], device=self.device)  # (G, 1)
            places = None if len(guided) == len(members) else torch.tensor(guided, device=self.device)
        generators = [request.generator for request in members]
        return self._sampler(key)(state.of(members), nulls, places, scale, generators)

    def _sampler(self, key: tuple[str, SamplerOptions]) -> Sampler:
        if key not in self.samplers:
            if len(self.samplers) == MOST_SAMPLERS:
                del self.samplers[next(iter(self.samplers))]
            name, options = key
            self.samplers[key] = self.model.heads[name].sampler(options)
        return self.samplers[key]

    def _feed_latent(self, request: ActiveRequest, latent: Tensor) -> list[Event]:
        """Make a sampled latent the next input, with the features of its sound where there is a second tokenizer."""
        request.span_length += 1
        request.num_latents += 1
        event = Event(request.handle, "latent", latent)
        if request.stream is None:
            request.pending = LatentInput(request.mode, latent)
            return [event]
        samples, features = request.stream.push(latent[None])
        request.pending = LatentInput(request.mode, latent, features[0])
        return [event, Event(request.handle, "sound", samples)]

    # -------------------------------------------------------------------- spans

    def _open(self, request: ActiveRequest, name: str) -> Event:
        """Enter a span, with a decoder of its own where its sound is decoded at once."""
        request.mode, request.is_open, request.span_length = name, True, 0
        request.stream = self.streams[name]() if name in self.streams else None
        return Event(request.handle, "open", name)

    def _begin(self, request: ActiveRequest, name: str) -> Event:
        """Enter a span by its <BOD>, the next input, with which the guidance branch of this request starts anew."""
        if request.null_row is not None:
            self.cache.lengths[request.null_row] = 0
        request.pending = self.special.bod[name]
        return self._open(request, name)

    def _leave(self, request: ActiveRequest, token: int) -> list[Event]:
        """Leave a span by <EOD>, or by the <BOD> of the next span in an answer that only <EOS> ends."""
        if token == self.special.eod:
            if self.tokens.is_full(request):
                request.finish_reason = "length"
            request.num_tokens += self.tokens.goes_on_until_eos(request)
            return self._close(request)
        request.num_tokens += 1
        return [*self._close(request), self._begin(request, request.mode)]

    def _close(self, request: ActiveRequest) -> list[Event]:
        """Leave a span. This completes an answer of one span; otherwise <EOD> is the next input. No event if no span is
        open, as between the spans of an answer that only <EOS> ends."""
        name, was_open = request.mode, request.is_open
        request.is_open, request.pending = False, self.special.eod
        if not self.tokens.goes_on_until_eos(request):
            request.mode = "text"
            if request.to != "auto":
                request.finish_reason = request.finish_reason or "stop"
        return [Event(request.handle, "close", name)] if was_open else []
