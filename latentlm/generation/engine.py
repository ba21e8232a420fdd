"""The generation engine: unlike requests that come and go, decoded together, one position of each a step (PAPER §1.4).

Place in the flow: 4, tasks (`task.py`) ──▶ events, which `answers.py` turns into text, pictures and sound.

    handle = engine.add(task)       waits in the queue until the cache has rows for it
    events = engine.step()          admit; one chunk of the prompts that are joining; one position of all that decode
    engine.cancel(handle)           in any phase; its rows are free at once

A task owns a row of the cache for its condition and, if it is guided, one for its guidance branch (PAPER §1.5), which
holds <BOD> and the sampled latents alone and starts over whenever that task opens a span. Nothing of a row moves when
others join or leave. The same sampled latent feeds both branches, with the features of its sound where the modality has
a second tokenizer (PAPER §6): it is decoded and heard at once. Every task draws from its own generator: what shares its
batch, and when it joined, does not matter. A task whose logits or latent are not finite ends alone, as "diverged".
Legend: `A` active tasks, `R` cache rows of a step, `M` tasks sampling a latent, `T` positions of a chunk, `D` width,
`C` latent channels.
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
from .task import Event, LatentInput, States, Task, check_length, expected_length, take
from .tokens import TokenChooser, are_finite

PREFILL_CHUNK = 512
"""Positions of one pass over prompts: those of most requests, and short beside a step of many latents."""
MOST_SAMPLERS = 16
"""Samplers that are kept, one for each solver and number of steps that requests ask for."""


class Engine:
    """Decodes tasks in `num_slots` rows of one cache; a guided task needs two. Tasks beyond them wait in order.

    streams: opens the stream of a span, of each modality whose model takes features.
    prefill_chunk: positions of one pass over prompts while others decode; of each prompt while nothing does.
    capacity: positions that each row has from the start. None: what the first tasks are expected to need. A task that
    needs more makes the cache grow by doubling, which copies it (`KVCache.reserve`): a server gives the whole context.
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
        self.tasks: dict[int, Task] = {}  # that have not ended, by handle
        self.queue: deque[Task] = deque()  # without rows
        self.joining: list[Task] = []  # with rows, the prompt not yet whole in the cache
        self.active: list[Task] = []  # decoding, in the order of their rows
        self._num_added = 0
        self._cancelled: set[int] = set()  # since the last step began

    @classmethod
    def of(
        cls, model: LatentLM, tasks: Sequence[Task], streams: Mapping[str, Callable[[], FeatureStream]] | None = None
    ) -> Engine:
        """An engine with rows for all of `tasks`, which are added; their handles are 0, 1, …"""
        engine = cls(model, streams, num_slots=sum(task.num_rows for task in tasks))
        for task in tasks:
            engine.add(task)
        return engine

    # --------------------------------------------------------------------- face

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.tasks

    def add(self, task: Task) -> int:
        """Queue a task; returns the handle that its events bear.

        Raises UserError for a prompt that does not fit the context, and a guided task where there is but one row.
        """
        check_length(task, self.limit, self.model.modalities.get(task.to))
        if task.num_rows > self.cache.num_rows:
            raise UserError(f"a guided request takes two slots; this engine has num_slots {self.cache.num_rows}")
        assert task.handle is None, "a task is added once"
        task.handle, self._num_added = self._num_added, self._num_added + 1
        self.tasks[task.handle] = task
        self.queue.append(task)
        return task.handle

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One unit of work: at most one chunk of prompts, then one position of every task that decodes."""
        self._cancelled.clear()
        self._admit()
        events = self._prefill()
        if self.active:
            events += self._decode()
            events += self._retire()
        return events

    def run(self) -> Iterator[Event]:
        """Step until nothing is left to do; events as they happen. A task that is cancelled between two of them has no
        further event, though this step made some."""
        while not self.idle:
            for event in self.step():
                if event.task not in self._cancelled:
                    yield event

    def cancel(self, handle: int) -> None:
        """End a task wherever it stands, with finish reason "cancelled" and no further event. One that has ended
        already, by itself or by `cancel`, stays as it is."""
        assert 0 <= handle < self._num_added, f"no task has the handle {handle}"
        if handle in self.tasks:
            self._end(self.tasks[handle], "cancelled")
            self._cancelled.add(handle)

    # --------------------------------------------------------------- come and go

    def _admit(self) -> None:
        """Rows for those who have waited longest, as far as there are enough: the conditions', then the guidance's."""
        admitted, num_free = [], self.cache.num_free
        while self.queue and self.queue[0].num_rows <= num_free:
            admitted.append(self.queue.popleft())
            num_free -= admitted[-1].num_rows
        for task in admitted:
            task.row = self.cache.claim()
        for task in admitted:
            task.null_row = self.cache.claim() if task.is_guided else None
        if admitted:
            lengths = [expected_length(task, self.model.modalities.get(task.to)) for task in admitted]
            self.cache.reserve(min(self.limit, max(lengths)), self.limit)
            self.joining += admitted

    def _end(self, task: Task, reason: str) -> None:
        """Take a task out, whichever phase it is in, and give its rows back."""
        task.finish_reason, task.inputs, task.stream = reason, None, None
        del self.tasks[task.handle]
        for phase in (self.queue, self.joining, self.active):
            if task in phase:
                phase.remove(task)
        for row in (task.row, task.null_row):
            if row is not None:
                self.cache.release(row)

    def _retire(self) -> list[Event]:
        """End the tasks that are finished. One that fills the context is; with its last latent a picture is whole."""
        events: list[Event] = []
        for task in list(self.active):
            if self.cache.lengths[task.row] >= self.limit:
                if task.is_open and task.span_length == self.model.modalities[task.mode].num_latents:
                    events += self._close(task)
                task.finish_reason = task.finish_reason or "length"
            if task.finish_reason is not None:
                events.append(Event(task.handle, "finish", task.finish_reason))
                self._end(task, task.finish_reason)
        return events

    # ------------------------------------------------------------------ prefill

    def _prefill(self) -> list[Event]:
        """Feed the next chunk of the prompts that are joining. One that is in the cache but for its last token, which
        is the first step's input, begins to decode."""
        group = self._next_prompts()
        if group:
            start = self.cache.lengths[group[0].row]
            pieces = [self._inputs(task)[start : start + self.prefill_chunk] for task in group]
            x = pad_sequence(pieces, batch_first=True)  # (B, T, D)
            self.cache.reserve(start + x.shape[1], self.limit)
            self.model.transformer.extend(x, self.cache.open(x.shape[1], [task.row for task in group]))
            for task, piece in zip(group, pieces, strict=True):
                self.cache.lengths[task.row] += len(piece)
        ready = [task for task in self.joining if self._missing(task) == 0]
        events: list[Event] = []
        for task in ready:
            self.joining.remove(task)
            task.inputs, task.pending = None, task.prompt.ids[-1]
            if task.prompt.opens is not None:
                events.append(self._open(task, task.prompt.opens))
        self.active = sorted(self.active + ready, key=lambda task: task.row)
        return events

    def _missing(self, task: Task) -> int:
        """Positions of a joining task's prompt that are still to be fed before it can decode."""
        return len(task.prompt) - 1 - self.cache.lengths[task.row]

    def _next_prompts(self) -> list[Task]:
        """The tasks of the next pass, longest waiting first. They are equally far, and their rows lie side by side, so
        that the pass sees them without a copy; while others decode they fit into `prefill_chunk` together."""
        group: list[Task] = []
        for task in (task for task in self.joining if self._missing(task) > 0):
            if group:
                beside = task.row == group[-1].row + 1
                if not beside or self.cache.lengths[task.row] != self.cache.lengths[group[0].row]:
                    break
                width = min(self.prefill_chunk, max(self._missing(member) for member in (*group, task)))
                if self.active and width * (len(group) + 1) > self.prefill_chunk:
                    break
            group.append(task)
        return group

    def _inputs(self, task: Task) -> Tensor:
        """The embedded prompt but its last token (L - 1, D). Its media are drawn once, from the task's generator."""
        if task.inputs is None:
            ids = torch.tensor(task.prompt.ids[:-1], device=self.device)
            x = self.model.embed_tokens(ids)
            for span in task.prompt.spans:
                values = span.latents.to(self.device).sample(task.generator).to(x.dtype)
                x[span.start : span.start + len(values)] = self.model.embed_latents[span.modality](values)
            task.inputs = x
        return task.inputs

    # ------------------------------------------------------------------- decode

    def _decode(self) -> list[Event]:
        """Feed every active task its pending input; give each its next token or latent."""
        writing = [task for task in self.active if task.mode == "text"]
        spans = [task for task in self.active if task.mode != "text"]
        state = self._forward([task for task in spans if task.is_guided])
        lengths = [self.cache.lengths[task.row] for task in writing]
        events: list[Event] = []
        for task, token in zip(writing, self.tokens.in_text(writing, state, lengths), strict=True):
            events += self._write(task, token)
        return events + self._go_on(spans, state)

    def _forward(self, guided: list[Task]) -> States:
        """One position of all active tasks through the transformer, and of the guidance branches of `guided`."""
        owners = {task.row: place for place, task in enumerate(self.active)}
        owners |= {task.null_row: owners[task.row] for task in guided}
        rows = sorted(owners)
        places = {row: place for place, row in enumerate(rows)}
        self.cache.reserve(max(self.cache.lengths[row] for row in rows) + 1, self.limit)
        x = take(self._embed([task.pending for task in self.active]), [owners[row] for row in rows])  # (R, D)
        starting = [task for task in guided if self.cache.lengths[task.null_row] == 0]
        if starting:  # also where a class takes the place of <BOD> in the condition
            bods = torch.tensor([self.special.bod[task.mode] for task in starting], device=self.device)
            index = torch.tensor([places[task.null_row] for task in starting], device=self.device)
            x = x.index_copy(0, index, self.model.embed_tokens(bods))
        hidden = self.transformer(len(rows)).extend(x[:, None], self.cache.open(1, rows))[:, 0]  # (R, D)
        for row in rows:
            self.cache.lengths[row] += 1
        return States(hidden, places)

    def _embed(self, inputs: list[int | LatentInput]) -> Tensor:
        """Tokens by the embedding table, latents by their map, plus that of their features: (A, D)."""
        tokens = torch.tensor([v if isinstance(v, int) else self.special.latent for v in inputs], device=self.device)
        x = self.model.embed_tokens(tokens)  # (A, D)
        by_modality: dict[str, list[int]] = {}
        for place, value in enumerate(inputs):
            if not isinstance(value, int):
                by_modality.setdefault(value.modality, []).append(place)
        for name, places in by_modality.items():
            values = torch.stack([inputs[place].latent for place in places]).to(x.dtype)
            embedded = self.model.embed_latents[name](values)
            if name in self.streams:
                features = torch.stack([inputs[place].features for place in places]).to(self.device, x.dtype)
                embedded = embedded + self.model.embed_features[name](features)
            x = x.index_copy(0, torch.tensor(places, device=self.device), embedded)
        return x

    def _write(self, task: Task, token: int | None) -> list[Event]:
        """A token of text becomes the next input; <EOS> ends the task and <BOD> begins a span instead."""
        if token is None:
            task.finish_reason = "diverged"
            return []
        if token == self.special.eos:
            task.finish_reason = "stop"
            return []
        name = next((name for name, bod in self.special.bod.items() if bod == token), None)
        if name is not None:
            return [self._begin(task, name)]
        task.pending = token
        task.num_tokens += 1
        if task.num_tokens >= task.max_tokens:
            task.finish_reason = "length"
        return [Event(task.handle, "token", token)]

    def _go_on(self, spans: list[Task], state: States) -> list[Event]:
        """Each span either ends, or gets its next latent; tasks of one modality and sampler options go together."""
        events: list[Event] = []
        groups: dict[tuple[str, SamplerOptions], list[Task]] = {}
        for task, token in zip(spans, self.tokens.in_spans(spans, state), strict=True):
            if token == self.special.proceed:
                if not task.is_open:  # speech that goes on after its <EOD> is a span that nobody began
                    events.append(self._open(task, task.mode))
                groups.setdefault((task.mode, SamplerOptions(task.solver, task.steps)), []).append(task)
            elif token is None or token == self.special.eos:
                task.finish_reason = "diverged" if token is None else "stop"
            else:
                events += self._leave(task, token)
        for key, members in groups.items():
            latents = self._sample(key, members, state)
            for task, latent, finite in zip(members, latents, are_finite(latents), strict=True):
                if finite:
                    events += self._hear(task, latent)
                else:
                    task.finish_reason = "diverged"
        return events

    def _sample(self, key: tuple[str, SamplerOptions], members: list[Task], state: States) -> Tensor:
        """Next latents (M, C) of `members`, which share modality and sampler options."""
        guided = [place for place, task in enumerate(members) if task.is_guided]
        nulls = scale = places = None
        if guided:
            nulls = state.null_of([members[place] for place in guided])
            scale = torch.tensor([[float(members[place].guidance)] for place in guided], device=self.device)  # (G, 1)
            places = None if len(guided) == len(members) else torch.tensor(guided, device=self.device)
        generators = [task.generator for task in members]
        return self._sampler(key)(state.of(members), nulls, places, scale, generators)

    def _sampler(self, key: tuple[str, SamplerOptions]) -> Sampler:
        if key not in self.samplers:
            if len(self.samplers) == MOST_SAMPLERS:
                del self.samplers[next(iter(self.samplers))]
            name, options = key
            self.samplers[key] = self.model.heads[name].sampler(options)
        return self.samplers[key]

    def _hear(self, task: Task, latent: Tensor) -> list[Event]:
        """A sampled latent becomes the next input."""
        task.span_length += 1
        task.num_latents += 1
        event = Event(task.handle, "latent", latent)
        if task.stream is None:
            task.pending = LatentInput(task.mode, latent)
            return [event]
        samples, features = task.stream.push(latent[None])
        task.pending = LatentInput(task.mode, latent, features[0])
        return [event, Event(task.handle, "sound", samples)]

    # -------------------------------------------------------------------- spans

    def _open(self, task: Task, name: str) -> Event:
        """Enter a span, with a stream of its own."""
        task.mode, task.is_open, task.span_length = name, True, 0
        task.stream = self.streams[name]() if name in self.streams else None
        return Event(task.handle, "open", name)

    def _begin(self, task: Task, name: str) -> Event:
        """Enter a span by its <BOD>, the next input: the guidance branch of this task alone starts over with it."""
        if task.null_row is not None:
            self.cache.lengths[task.null_row] = 0
        task.pending = self.special.bod[name]
        return self._open(task, name)

    def _leave(self, task: Task, token: int) -> list[Event]:
        """Leave a span by <EOD>, or by the <BOD> of the next one, which an answer that ends with <EOS> may choose."""
        if token == self.special.eod:
            if self.tokens.is_full(task):
                task.finish_reason = "length"
            task.num_tokens += self.tokens.goes_on_until_eos(task)
            return self._close(task)
        task.num_tokens += 1
        return [*self._close(task), self._begin(task, task.mode)]

    def _close(self, task: Task) -> list[Event]:
        """Leave a span: an answer of one span is complete; otherwise <EOD> is fed and the text head goes on. An answer
        that ends with <EOS> may stand between spans, where nothing is open."""
        name, was_open = task.mode, task.is_open
        task.is_open, task.pending = False, self.special.eod
        if not self.tokens.goes_on_until_eos(task):
            task.mode = "text"
            if task.to != "auto":
                task.finish_reason = task.finish_reason or "stop"
        return [Event(task.handle, "close", name)] if was_open else []
