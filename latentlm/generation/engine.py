"""The generation engine: prefill, step, and the loop over unlike requests (PAPER §1.4, §1.5).

Place in the flow: 4, encoded prompts ──▶ tokens and latents, one position of every request a step.

Each request owns a row of the cache's condition branch; a guided one also owns a row of the guidance branch, which
holds <BOD> and the sampled latents alone and is reset whenever that request opens a span. The same sampled latent
feeds both, with the features of its sound where the modality has a second tokenizer (PAPER §6): it is decoded and heard
at once. Every request draws from its own generator: what shares its batch does not matter.
Legend: `A` active requests, `R` cache rows of a step, `M` requests sampling a latent, `D` width, `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..model.heads import Sampler, SamplerOptions
from ..model.latentlm import LatentLM
from ..model.prepack import Packing
from ..tokenizers.streaming import FeatureStream
from .states import States, take
from .task import Event, Heard, Task, check_length, expected_length
from .text import free_text_bias, pick_token


class Engine:
    """Decodes a fixed set of tasks to their ends. `run` yields events as they happen."""

    def __init__(
        self, model: LatentLM, tasks: list[Task], streams: Mapping[str, Callable[[], FeatureStream]] | None = None
    ):
        """`streams` opens the stream of a span of each modality whose model takes features."""
        self.model = model
        self.streams = streams or {}
        self.special = model.special
        self.tasks = tasks
        self.device = model.embed_tokens.weight.device
        self._assign_rows(list(range(len(tasks))))
        limit = model.config.transformer.context_length
        for task in tasks:
            check_length(task, limit, model.modalities.get(task.to))
        self.limit = limit
        capacity = min(limit, max(expected_length(task, model.modalities.get(task.to)) for task in tasks))
        self.cache = model.transformer.new_cache(len(tasks) + len(self.guidance_row), capacity)
        self.transformer = Packing(model.transformer)
        self.samplers: dict[tuple[str, SamplerOptions], Sampler] = {}
        vocabulary = model.text_head.out_features
        self.free_text = {
            to: free_text_bias(self.special, vocabulary, model.modalities if to == "auto" else ()).to(self.device)
            for to in {task.to for task in tasks}
        }

    @torch.inference_mode()
    def run(self) -> Iterator[Event]:
        """Generate until every task has a `finish_reason`."""
        yield from self._prefill()
        while self.active:
            yield from self._step()
            yield from self._retire()

    # ------------------------------------------------------------------ prefill

    def _prefill(self) -> Iterator[Event]:
        """All prompts but their last token go into the cache at once; the last one is the first step's input."""
        width = max(len(task.prompt) for task in self.tasks) - 1
        for index, task in enumerate(self.tasks):
            task.pending = task.prompt.ids[-1]
            if task.prompt.opens is not None:
                yield self._open(index, task.prompt.opens)
        if width == 0:
            return
        rows = list(range(len(self.tasks)))
        view = self.cache.open(width, rows if self.guidance_row else None)
        self.model.transformer.extend(self._embed_prompts(width), view)
        for row, task in zip(rows, self.tasks, strict=True):
            self.cache.lengths[row] = len(task.prompt) - 1

    def _embed_prompts(self, width: int) -> Tensor:
        ids = torch.full((len(self.tasks), width), self.special.eos, device=self.device)
        for row, task in enumerate(self.tasks):
            prefix = task.prompt.ids[:-1]
            ids[row, : len(prefix)] = torch.tensor(prefix, device=self.device)
        x = self.model.embed_tokens(ids)  # (B, width, D)
        for row, task in enumerate(self.tasks):
            for span in task.prompt.spans:
                values = span.latents.to(self.device).sample(task.generator).to(x.dtype)
                x[row, span.start : span.start + len(values)] = self.model.embed_latents[span.modality](values)
        return x

    # --------------------------------------------------------------------- step

    def _step(self) -> Iterator[Event]:
        """Feed every active task its pending input; give each its next token or latent."""
        spans = [i for i in self.active if self.tasks[i].mode != "text"]
        nulls = [i for i in spans if i in self.guidance_row]
        rows = self.active_rows + [self.guidance_row[i] for i in nulls]
        self.cache.reserve(max(self.cache.lengths[row] for row in rows) + 1, self.limit)
        place = {i: number for number, i in enumerate(self.active)}
        x = self._embed([self.tasks[i].pending for i in self.active])  # (A, D)
        x = torch.cat((x, self._null_inputs(take(x, [place[i] for i in nulls]), nulls)))[:, None]  # (R, 1, D)
        whole = rows == list(range(self.cache.num_rows))
        transformer = self.transformer(len(rows))
        hidden = transformer.extend(x, self.cache.open(1, None if whole else rows))[:, 0]  # (R, D)
        for row in rows:
            self.cache.lengths[row] += 1
        state = States(hidden, place, {i: len(self.active) + number for number, i in enumerate(nulls)})
        yield from self._text_step([i for i in self.active if self.tasks[i].mode == "text"], state)
        yield from self._span_step(spans, state)

    def _null_inputs(self, x: Tensor, nulls: list[int]) -> Tensor:
        """What the guidance branches of `nulls` get: the input x (G, D) of their condition, but <BOD> where a class
        opens the span."""
        for row, index in enumerate(nulls):
            bod = self.special.bod[self.tasks[index].mode]
            if self.cache.lengths[self.guidance_row[index]] == 0 and self.tasks[index].pending != bod:
                x = x.index_copy(0, torch.tensor([row], device=self.device), self._embed([bod]))
        return x

    def _embed(self, inputs: list[int | Heard]) -> Tensor:
        """Tokens by the embedding table, latents by their map, plus that of their features: (A, D)."""
        tokens = torch.tensor([v if isinstance(v, int) else self.special.latent for v in inputs], device=self.device)
        x = self.model.embed_tokens(tokens)  # (R, D)
        by_width: dict[str, list[int]] = {}
        for row, value in enumerate(inputs):
            if not isinstance(value, int):
                by_width.setdefault(value.modality, []).append(row)
        for name, rows in by_width.items():
            values = torch.stack([inputs[row].latent for row in rows]).to(x.dtype)
            embedded = self.model.embed_latents[name](values)
            if name in self.streams:
                features = torch.stack([inputs[row].features for row in rows]).to(self.device, x.dtype)
                embedded = embedded + self.model.embed_features[name](features)
            x = x.index_copy(0, torch.tensor(rows, device=self.device), embedded)
        return x

    def _text_step(self, indices: list[int], state: States) -> Iterator[Event]:
        if not indices:
            return
        rows = self.model.text_logits(state.of(indices))  # (M, V)
        for row, index in zip(rows, indices, strict=True):
            task = self.tasks[index]
            logits = row + self.free_text[task.to]
            without_room = self._without_room(self.cache.lengths[state.place[index]])
            if without_room:
                logits[without_room] = -torch.inf
            token = pick_token(logits, task.temperature, task.generator)
            if token == self.special.eos:
                task.finish_reason = "stop"
                continue
            name = next((name for name, bod in self.special.bod.items() if bod == token), None)
            if name is not None:
                yield self._begin(index, name)
                continue
            task.pending = token
            task.num_tokens += 1
            if task.num_tokens >= task.max_tokens:
                task.finish_reason = "length"
            yield Event(index, "token", token)

    def _without_room(self, length: int) -> list[int]:
        """<BOD> of the spans that do not fit behind `length` positions: pictures fit whole, speech with one latent."""
        sizes = {name: spec.num_latents or 1 for name, spec in self.model.modalities.items()}
        return [self.special.bod[name] for name, size in sizes.items() if length + size > self.limit]

    def _span_step(self, indices: list[int], state: States) -> Iterator[Event]:
        """Each span either ends, or gets its next latent; tasks of one modality and sampler options go together."""
        logits = self._span_logits(indices, state)
        groups: dict[tuple[str, SamplerOptions], list[int]] = {}
        for index in indices:
            task = self.tasks[index]
            token = self._next_in_span(task, logits.get(index))
            if token == self.special.proceed:
                if not task.is_open:  # speech that goes on after its <EOD> is a span that nobody began
                    yield self._open(index, task.mode)
                groups.setdefault((task.mode, SamplerOptions(task.solver, task.steps)), []).append(index)
            elif token == self.special.eod:
                task.num_tokens += self._lasts(task)
                yield from self._close(index)
            elif token == self.special.eos:
                task.finish_reason = "stop"
            else:
                task.num_tokens += 1
                yield from self._close(index)
                yield self._begin(index, task.mode)
        for key, members in groups.items():
            for index, latent in zip(members, self._sample(key, members, state), strict=True):
                yield from self._hear(index, latent)

    def _hear(self, index: int, latent: Tensor) -> Iterator[Event]:
        """A sampled latent becomes the next input."""
        task = self.tasks[index]
        task.span_length += 1
        task.num_latents += 1
        yield Event(index, "latent", latent)
        if task.stream is None:
            task.pending = Heard(task.mode, latent)
            return
        samples, features = task.stream.push(latent[None])
        task.pending = Heard(task.mode, latent, features[0])
        yield Event(index, "sound", samples)

    def _span_logits(self, indices: list[int], state: States) -> dict[int, Tensor]:
        """The logits of what may follow in each span of variable length, in the order of `_span_tokens`."""
        by_tokens: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            if self.model.modalities[self.tasks[index].mode].num_latents is None:
                by_tokens.setdefault(self._span_tokens(self.tasks[index]), []).append(index)
        logits: dict[int, Tensor] = {}
        for tokens, members in by_tokens.items():
            logits |= zip(members, self.model.end_logits(state.of(members), tokens), strict=True)
        return logits

    def _span_tokens(self, task: Task) -> tuple[int, ...]:
        """What a position of a span chooses from: going on or <EOD>; in an answer that lasts, <BOD> and <EOS> too."""
        special = self.special
        ends = (special.proceed, special.eod)
        return (*ends, special.bod[task.mode], special.eos) if self._lasts(task) else ends

    def _lasts(self, task: Task) -> bool:
        """Whether the answer goes on after its span, until <EOS>."""
        return self.model.config.answer == "document" and task.to == task.mode

    def _next_in_span(self, task: Task, logits: Tensor | None) -> int:
        """The token that decides: <PROCEED> for one more latent, or one that ends or begins something."""
        fixed = self.model.modalities[task.mode].num_latents
        if fixed is not None:
            return self.special.eod if task.span_length == fixed else self.special.proceed
        length = task.num_latents + task.num_tokens if self._lasts(task) else task.span_length
        if task.max_latents is not None and length >= task.max_latents:
            task.finish_reason = "length"
            return self.special.eod
        return self._span_tokens(task)[pick_token(logits, task.temperature, task.generator)]

    def _sample(self, key: tuple[str, SamplerOptions], members: list[int], state: States) -> Tensor:
        """Next latents (M, C) of `members`, which share modality and sampler options."""
        tasks = [self.tasks[i] for i in members]
        guided = [place for place, i in enumerate(members) if i in state.null_place]
        nulls = scale = places = None
        if guided:
            nulls = state.null_of([members[place] for place in guided])
            scale = torch.tensor([[tasks[place].guidance] for place in guided], dtype=torch.float32, device=self.device)
            places = None if len(guided) == len(members) else torch.tensor(guided, device=self.device)
        generators = [task.generator for task in tasks]
        return self._sampler(key)(state.of(members), nulls, places, scale, generators)

    def _sampler(self, key: tuple[str, SamplerOptions]) -> Sampler:
        if key not in self.samplers:
            name, options = key
            self.samplers[key] = self.model.heads[name].sampler(options)
        return self.samplers[key]

    # -------------------------------------------------------------------- spans

    def _open(self, index: int, name: str) -> Event:
        """Enter a span, with a stream of its own."""
        task = self.tasks[index]
        task.mode, task.is_open, task.span_length = name, True, 0
        task.stream = self.streams[name]() if name in self.streams else None
        return Event(index, "open", name)

    def _begin(self, index: int, name: str) -> Event:
        """Enter a span by its <BOD>, the next input: the guidance branch of this row alone starts over with it."""
        if index in self.guidance_row:
            self.cache.lengths[self.guidance_row[index]] = 0
        self.tasks[index].pending = self.special.bod[name]
        return self._open(index, name)

    def _close(self, index: int) -> Iterator[Event]:
        """Leave a span: an answer of one span is complete; otherwise <EOD> is fed and the text head goes on. An answer
        that lasts may stand between spans, where nothing is open."""
        task = self.tasks[index]
        name, was_open = task.mode, task.is_open
        task.is_open, task.pending = False, self.special.eod
        if not self._lasts(task):
            task.mode = "text"
            if task.to != "auto":
                task.finish_reason = task.finish_reason or "stop"
        if was_open:
            yield Event(index, "close", name)

    # --------------------------------------------------------------------- rows

    def _assign_rows(self, alive: list[int]) -> None:
        """Cache rows: the condition branch of the tasks `alive` in order, then the guidance branch of the guided."""
        guided = [i for i in alive if self.tasks[i].guidance != 1.0 and self.tasks[i].to != "text"]
        self.active = alive
        self.active_rows = list(range(len(alive)))
        self.guidance_row = {i: len(alive) + place for place, i in enumerate(guided)}

    def _retire(self) -> Iterator[Event]:
        """Give the cache rows of finished tasks back; a task that fills the context is finished, and with its last
        latent a picture is whole."""
        for row, index in zip(self.active_rows, self.active, strict=True):
            task = self.tasks[index]
            if self.cache.lengths[row] >= self.limit:
                if task.is_open and task.span_length == self.model.modalities[task.mode].num_latents:
                    yield from self._close(index)
                task.finish_reason = task.finish_reason or "length"
        keep = [place for place, i in enumerate(self.active) if self.tasks[i].finish_reason is None]
        if len(keep) == len(self.active):
            return
        alive = [self.active[place] for place in keep]
        keep += [self.guidance_row[i] for i in alive if i in self.guidance_row]
        self._assign_rows(alive)
        if alive:
            self.cache.keep(keep)
