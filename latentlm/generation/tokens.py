"""Which token follows: in text any that it may contain, in a span whether it goes on.

Place in the flow: 4, inside `engine.py`, hidden states ──▶ tokens; the engine does what they say.
Legend: `M` tasks, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..model.latentlm import LatentLM
from ..tokenizers.text import SpecialTokens
from .task import States, Task


class TokenChooser:
    """Chooses the next token of each task by the text head, within what the layout of a document allows.

    limit: positions of the context.
    """

    def __init__(self, model: LatentLM, limit: int):
        self.model = model
        self.special = model.special
        self.limit = limit
        self._biases: dict[bool, Tensor] = {}

    # ---------------------------------------------------------------------- text

    def in_text(self, tasks: Sequence[Task], state: States, lengths: Sequence[int]) -> list[int | None]:
        """The next token of each task that is writing, None where logits are not finite; `lengths` are the filled
        positions of their cache rows."""
        if not tasks:
            return []
        logits = self.model.text_logits(state.of(tasks))  # (M, V)
        return [
            self._in_text(task, row, length) if finite else None
            for task, row, length, finite in zip(tasks, logits, lengths, can_choose(logits), strict=True)
        ]

    def _in_text(self, task: Task, logits: Tensor, length: int) -> int:
        logits = logits + self._bias(task.to == "auto")
        without_room = self._without_room(length)
        if without_room:
            logits[without_room] = -torch.inf
        return pick_token(logits, task.temperature, task.generator)

    def _bias(self, opens: bool) -> Tensor:
        """The bias of `free_text_bias` for tasks that may open spans, and for those that may not."""
        if opens not in self._biases:
            names = self.model.modalities if opens else ()
            bias = free_text_bias(self.special, self.model.text_head.out_features, names)
            self._biases[opens] = bias.to(self.model.embed_tokens.weight.device)
        return self._biases[opens]

    def _without_room(self, length: int) -> list[int]:
        """<BOD> of the spans that do not fit behind `length` positions: pictures fit whole, speech with one latent."""
        sizes = {name: spec.num_latents or 1 for name, spec in self.model.modalities.items()}
        return [self.special.bod[name] for name, size in sizes.items() if length + size > self.limit]

    # --------------------------------------------------------------------- spans

    def in_spans(self, tasks: Sequence[Task], state: States) -> list[int | None]:
        """The token of each task in a span: <PROCEED> for one more latent, or one that ends or begins something; None
        where logits are not finite.

        A span of fixed length goes on until it is full. One of variable length is asked at every position.
        """
        by_tokens: dict[tuple[int, ...], list[Task]] = {}
        for task in tasks:
            if self._fixed(task) is None:
                by_tokens.setdefault(self._span_tokens(task), []).append(task)
        logits: dict[Task, Tensor] = {}
        diverged: set[Task] = set()
        for tokens, members in by_tokens.items():
            found = self.model.end_logits(state.of(members), tokens)
            diverged |= {task for task, sound in zip(members, can_choose(found), strict=True) if not sound}
            logits |= zip(members, found, strict=True)
        return [None if task in diverged else self._in_span(task, logits.get(task)) for task in tasks]

    def _in_span(self, task: Task, logits: Tensor | None) -> int:
        fixed = self._fixed(task)
        if fixed is not None:
            return self.special.eod if task.span_length == fixed else self.special.proceed
        if self.is_full(task):
            return self.special.eod
        return self._span_tokens(task)[pick_token(logits, task.temperature, task.generator)]

    def _span_tokens(self, task: Task) -> tuple[int, ...]:
        """The tokens that may follow a latent: going on or <EOD>; also <BOD> and <EOS> in an answer that <EOS> ends."""
        special = self.special
        ends = (special.proceed, special.eod)
        return (*ends, special.bod[task.mode], special.eos) if self.goes_on_until_eos(task) else ends

    def _fixed(self, task: Task) -> int | None:
        return self.model.modalities[task.mode].num_latents

    def is_full(self, task: Task) -> bool:
        """Whether the open span of variable length (or the answer that <EOS> ends) has `max_latents` latents."""
        if self._fixed(task) is not None or task.max_latents is None:
            return False
        length = task.num_latents + task.num_tokens if self.goes_on_until_eos(task) else task.span_length
        return length >= task.max_latents

    def goes_on_until_eos(self, task: Task) -> bool:
        """Whether the answer goes on after its span, until <EOS>."""
        return self.model.config.stop_at == "eos" and task.to == task.mode


def forbidden_tokens(special: SpecialTokens, opens: Collection[str] = ()) -> list[int]:
    """Tokens that free-running text may not produce: those that only the sequence layout writes.

    Spans of the modalities `opens` the model may open by <BOD> itself. <EOS> may always come, also where a backbone has
    one token for both ends of a document.
    """
    layout = [special.bos, special.eod, special.proceed, special.latent]
    layout += [bod for name, bod in special.bod.items() if name not in opens]
    return [token for token in layout if token not in (None, special.eos)]


def free_text_bias(special: SpecialTokens, vocabulary: int, opens: Collection[str] = ()) -> Tensor:
    """What is added to logits (V,): -inf for the forbidden tokens, 0 for all others."""
    bias = torch.zeros(vocabulary)
    bias[forbidden_tokens(special, opens)] = -torch.inf
    return bias


def are_finite(values: Tensor) -> list[bool]:
    """Whether each row of values (M, ...) holds finite numbers alone."""
    return values.isfinite().flatten(1).all(1).tolist()


def can_choose(logits: Tensor) -> list[bool]:
    """Whether each row of logits (M, V) has a token to choose: none is NaN or +inf; those at -inf are ruled out."""
    return logits.amax(1).isfinite().tolist()


def pick_token(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One token of logits (V,): the most likely at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator))
