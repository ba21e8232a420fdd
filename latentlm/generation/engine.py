"""The generation engine: prefill, step, and the loop over unlike requests (PAPER §1.4, §1.5).

Place in the flow: 4, encoded prompts ──▶ tokens and latents, one position of every request a step.

Each request owns a row of the cache's condition branch; a guided one also owns a row of the guidance branch, which
holds <BOD> and the sampled latents alone and is reset whenever that request opens a span. The same sampled latent
feeds both. Every request draws from its own generator: what shares its batch does not matter.
Legend: `A` active requests, `R` cache rows of a step, `M` requests sampling a latent, `D` width, `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.packing import EncodedDocument
from ..model.latentlm import LatentLM
from .latent import DEFAULT_SOLVER, LatentSampler, cached_plan
from .text import forbidden_tokens, pick_token

GROWTH = 128
"""Positions by which a cache grows beyond the prompt at a time, where the length is the model's to decide."""


@dataclass
class Task:
    """One request inside the engine: what it asks for, and where it stands.

    `to` is "text", a modality, or "auto": then the model switches modality by itself until <EOS>.
    """

    prompt: EncodedDocument
    to: str
    guidance: float
    steps: int
    solver: str | None
    temperature: float
    max_tokens: int
    max_latents: int
    generator: torch.Generator
    mode: str = "text"
    pending: int | tuple[str, Tensor] = 0  # the next input: a token, or a modality and its latent (C,)
    tokens: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)  # of the open span
    num_tokens: int = 0
    num_latents: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class Event:
    """Something that request `task` produced: kind "token" (int), "latent" (C,), "open" or "close" (the modality)."""

    task: int
    kind: str
    value: object


@dataclass(frozen=True)
class States:
    """Hidden states (R, D) of one step, and in which row each task's condition and guidance branch lies."""

    hidden: Tensor
    place: dict[int, int]
    null_place: dict[int, int]

    def of(self, tasks: list[int]) -> Tensor:
        return take(self.hidden, [self.place[i] for i in tasks])

    def null_of(self, tasks: list[int]) -> Tensor:
        return take(self.hidden, [self.null_place[i] for i in tasks])


def take(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of x, without a copy where they lie side by side."""
    if rows and rows == list(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[torch.tensor(rows, dtype=torch.int64, device=x.device)]


class Engine:
    """Decodes a fixed set of tasks to their ends. `run` yields events as they happen."""

    def __init__(self, model: LatentLM, tasks: list[Task]):
        self.model = model
        self.special = model.special
        self.tasks = tasks
        self.device = model.embed_tokens.weight.device
        self._assign_rows(list(range(len(tasks))))
        prompt = max(len(task.prompt) for task in tasks)
        limit = model.config.transformer.context_length
        for task in tasks:
            self._check_length(task, limit)
        self.limit = limit
        self.cache = model.transformer.new_cache(len(tasks) + len(self.guidance_row), min(limit, prompt + GROWTH))
        self.samplers: dict[tuple, LatentSampler] = {}
        self.free_text = {to: self._token_bias(to == "auto") for to in {task.to for task in tasks}}

    @torch.inference_mode()
    def run(self) -> Iterator[Event]:
        """Generate until every task has a `finish_reason`."""
        yield from self._prefill()
        while self.active:
            yield from self._step()
            self._retire()

    # ------------------------------------------------------------------ prefill

    def _prefill(self) -> Iterator[Event]:
        """All prompts but their last token go into the cache at once; the last one is the first step's input."""
        width = max(len(task.prompt) for task in self.tasks) - 1
        for index, task in enumerate(self.tasks):
            last = task.prompt.ids[-1]
            task.pending = last
            for name, token in self.special.bod.items():
                if token == last:
                    yield self._open(index, name)
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
        x = torch.cat((x, take(x, [place[i] for i in nulls])))[:, None]  # (R, 1, D): both branches get one input
        whole = rows == list(range(self.cache.num_rows))
        hidden = self.model.transformer.extend(x, self.cache.open(1, None if whole else rows))[:, 0]  # (R, D)
        for row in rows:
            self.cache.lengths[row] += 1
        state = States(hidden, place, {i: len(self.active) + number for number, i in enumerate(nulls)})
        yield from self._text_step([i for i in self.active if self.tasks[i].mode == "text"], state)
        yield from self._span_step(spans, state)

    def _embed(self, inputs: list[int | tuple[str, Tensor]]) -> Tensor:
        """Tokens by the embedding table, latents by their linear map: (A, D)."""
        tokens = torch.tensor([v if isinstance(v, int) else self.special.latent for v in inputs], device=self.device)
        x = self.model.embed_tokens(tokens)  # (R, D)
        by_width: dict[str, list[int]] = {}
        for row, value in enumerate(inputs):
            if not isinstance(value, int):
                by_width.setdefault(value[0], []).append(row)
        for name, rows in by_width.items():
            values = torch.stack([inputs[row][1] for row in rows]).to(x.dtype)
            embedded = self.model.embed_latents[name](values)
            x = x.index_copy(0, torch.tensor(rows, device=self.device), embedded)
        return x

    def _text_step(self, indices: list[int], state: States) -> Iterator[Event]:
        if not indices:
            return
        logits = self.model.text_head(state.of(indices)).float()  # (M, V)
        for row, index in zip(logits, indices, strict=True):
            task = self.tasks[index]
            token = pick_token(row + self.free_text[task.to], task.temperature, task.generator)
            if token == self.special.eos:
                task.finish_reason = "stop"
                continue
            task.pending = token
            name = next((name for name, bod in self.special.bod.items() if bod == token), None)
            if name is not None:
                yield self._open(index, name)
                continue
            task.num_tokens += 1
            if task.num_tokens >= task.max_tokens:
                task.finish_reason = "length"
            yield Event(index, "token", token)

    def _span_step(self, indices: list[int], state: States) -> Iterator[Event]:
        """Each span either ends, or gets its next latent; tasks of one modality, solver and step count go together."""
        open_ended = [i for i in indices if self.model.modalities[self.tasks[i].mode].num_latents is None]
        ends = dict(zip(open_ended, self.model.end_logits(state.of(open_ended)), strict=True))  # (2,) each
        groups: dict[tuple, list[int]] = {}
        for index in indices:
            task = self.tasks[index]
            if self._span_ends(task, ends.get(index)):
                yield self._close(index)
            else:
                groups.setdefault((task.mode, task.solver, task.steps), []).append(index)
        for key, members in groups.items():
            for index, latent in zip(members, self._sample(key, members, state), strict=True):
                task = self.tasks[index]
                task.pending = (task.mode, latent)
                task.latents.append(latent)
                task.num_latents += 1
                yield Event(index, "latent", latent)

    def _span_ends(self, task: Task, end: Tensor | None) -> bool:
        """`end` (2,) are the end logits of a span of variable length."""
        fixed = self.model.modalities[task.mode].num_latents
        if fixed is not None:
            return len(task.latents) == fixed
        if len(task.latents) >= task.max_latents:
            task.finish_reason = "length"
            return True
        return pick_token(end, task.temperature, task.generator) == 1

    def _sample(self, key: tuple, members: list[int], state: States) -> Tensor:
        """Next latents (M, C) of `members`, which share modality, solver and number of steps."""
        tasks = [self.tasks[i] for i in members]
        dim = self.model.modalities[key[0]].latent_dim
        noise = torch.stack([torch.randn(dim, generator=t.generator, device=t.generator.device) for t in tasks])
        guided = [place for place, i in enumerate(members) if i in state.null_place]
        nulls = scale = places = None
        if guided:
            nulls = state.null_of([members[place] for place in guided])
            scale = torch.tensor([[tasks[place].guidance] for place in guided], device=self.device)
            places = None if len(guided) == len(members) else torch.tensor(guided, device=self.device)
        return self._sampler(key)(state.of(members), noise.to(self.device), nulls, places, scale)

    def _sampler(self, key: tuple) -> LatentSampler:
        if key not in self.samplers:
            name, solver, steps = key
            process = self.model.process
            plan = cached_plan(process, solver or DEFAULT_SOLVER[self.model.config.diffusion.process], steps)
            self.samplers[key] = LatentSampler(self.model.heads[name], plan)
        return self.samplers[key]

    # -------------------------------------------------------------------- spans

    def _open(self, index: int, name: str) -> Event:
        """Enter a span: the guidance branch of this row alone starts over, at <BOD>."""
        task = self.tasks[index]
        task.mode, task.latents = name, []
        if index in self.guidance_row:
            self.cache.lengths[self.guidance_row[index]] = 0
        return Event(index, "open", name)

    def _close(self, index: int) -> Event:
        """Leave a span: an answer of one modality is complete; otherwise <EOD> is fed and text goes on."""
        task = self.tasks[index]
        name, task.mode, task.pending = task.mode, "text", self.special.eod
        if task.to != "auto":
            task.finish_reason = task.finish_reason or "stop"
        return Event(index, "close", name)

    # --------------------------------------------------------------------- rows

    def _assign_rows(self, alive: list[int]) -> None:
        """Cache rows: the condition branch of the tasks `alive` in order, then the guidance branch of the guided."""
        guided = [i for i in alive if self.tasks[i].guidance != 1.0 and self.tasks[i].to != "text"]
        self.active = alive
        self.active_rows = list(range(len(alive)))
        self.guidance_row = {i: len(alive) + place for place, i in enumerate(guided)}

    def _retire(self) -> None:
        """Give the cache rows of finished tasks back; a task that fills the context is finished."""
        for row, index in zip(self.active_rows, self.active, strict=True):
            if self.cache.lengths[row] >= self.limit:
                self.tasks[index].finish_reason = self.tasks[index].finish_reason or "length"
        keep = [place for place, i in enumerate(self.active) if self.tasks[i].finish_reason is None]
        if len(keep) == len(self.active):
            return
        alive = [self.active[place] for place in keep]
        keep += [self.guidance_row[i] for i in alive if i in self.guidance_row]
        self._assign_rows(alive)
        if alive:
            self.cache.keep(keep)

    def _check_length(self, task: Task, limit: int) -> None:
        """ValueError for a prompt past the context, or one that leaves no room for a whole image."""
        prompt = len(task.prompt)
        if prompt > limit:
            raise ValueError(f"the prompt has {prompt} positions, the context is {limit}")
        spec = self.model.modalities.get(task.to)
        if spec is not None and spec.num_latents and prompt + spec.num_latents - 1 > limit:
            raise ValueError(
                f"the prompt has {prompt} positions and the {task.to} {spec.num_latents}, the context is {limit}"
            )

    def _token_bias(self, switching: bool) -> Tensor:
        bias = torch.zeros(self.model.text_head.out_features, device=self.device)
        bias[forbidden_tokens(self.special, switching)] = -torch.inf
        return bias
