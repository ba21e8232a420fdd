"""Chooses the next token: any text token within text, <PROCEED> or an end within a span.

Place in the flow: 4, inside `engine.py`, hidden states ──▶ tokens.
Legend: `M` requests, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..model.latentlm import LatentLM
from ..tokenizers.text import SpecialTokens
from .active_request import ActiveRequest, States


class TokenChooser:
    """Chooses the next token of each request by the text head, among those that the layout of a document allows.

    limit: context length in positions.
    """

    def __init__(self, model: LatentLM, limit: int):
        self.model = model
        self.special = model.special
        self.limit = limit
        self._biases: dict[bool, Tensor] = {}

    # ---------------------------------------------------------------------- text

    def in_text(self, requests: Sequence[ActiveRequest], state: States, lengths: Sequence[int]) -> list[int | None]:
        """The next token of each request that writes text, None where its logits are not finite.

        lengths: filled positions of the requests' cache rows.
        """
        if not requests:
            return []
        logits = self.model.text_logits(state.of(requests))  # (M, V)
        return [
            self._in_text(request, row, length) if finite else None
            for request, row, length, finite in zip(requests, logits, lengths, can_choose(logits), strict=True)
        ]

    def _in_text(self, request: ActiveRequest, logits: Tensor, length: int) -> int:
        logits = logits + self._bias(request.to == "auto")
        without_room = self._without_room(length)
        if without_room:
            logits[without_room] = -torch.inf
        return pick_token(logits, request.temperature, request.generator)

    def _bias(self, opens: bool) -> Tensor:
        """`free_text_bias` for requests that may open spans (`opens`) or may not."""
        if opens not in self._biases:
            names = self.model.modalities if opens else ()
            bias = free_text_bias(self.special, self.model.text_head.out_features, names)
            self._biases[opens] = bias.to(self.model.embed_tokens.weight.device)
        return self._biases[opens]

    def _without_room(self, length: int) -> list[int]:
        """<BOD> of each modality that does not fit after `length` positions: a whole picture, one latent of speech."""
        sizes = {name: spec.num_latents or 1 for name, spec in self.model.modalities.items()}
        return [self.special.bod[name] for name, size in sizes.items() if length + size > self.limit]

    # --------------------------------------------------------------------- spans

    def in_spans(self, requests: Sequence[ActiveRequest], state: States) -> list[int | None]:
        """The next token of each request in a span: <PROCEED> for one more latent, or another token of `_span_tokens`;
        None where its logits are not finite.

        A span of fixed length goes on until it is full. In a span of variable length the text head decides at every
        position.
        """
        by_tokens: dict[tuple[int, ...], list[ActiveRequest]] = {}
        for request in requests:
            if self._fixed(request) is None:
                by_tokens.setdefault(self._span_tokens(request), []).append(request)
        logits: dict[ActiveRequest, Tensor] = {}
        diverged: set[ActiveRequest] = set()
        for tokens, members in by_tokens.items():
            found = self.model.end_logits(state.of(members), tokens)
            diverged |= {request for request, sound in zip(members, can_choose(found), strict=True) if not sound}
            logits |= zip(members, found, strict=True)
        return [None if request in diverged else self._in_span(request, logits.get(request)) for request in requests]

    def _in_span(self, request: ActiveRequest, logits: Tensor | None) -> int:
        fixed = self._fixed(request)
        if fixed is not None:
            return self.special.eod if request.span_length == fixed else self.special.proceed
        if self.is_full(request):
            return self.special.eod
        return self._span_tokens(request)[pick_token(logits, request.temperature, request.generator)]

    def _span_tokens(self, request: ActiveRequest) -> tuple[int, ...]:
        """The tokens that may follow a latent: <PROCEED>, <EOD>; where only <EOS> ends an answer, also <BOD>, <EOS>."""
        special = self.special
        ends = (special.proceed, special.eod)
        return (*ends, special.bod[request.mode], special.eos) if self.goes_on_until_eos(request) else ends

    def _fixed(self, request: ActiveRequest) -> int | None:
        return self.model.modalities[request.mode].num_latents

    def is_full(self, request: ActiveRequest) -> bool:
        """Whether the open span of variable length, or an answer that only <EOS> ends, has reached `max_latents`."""
        if self._fixed(request) is not None or request.max_latents is None:
            return False
        length = request.num_latents + request.num_tokens if self.goes_on_until_eos(request) else request.span_length
        return length >= request.max_latents

    def goes_on_until_eos(self, request: ActiveRequest) -> bool:
        """Whether the answer may have several spans and ends with <EOS> alone."""
        return self.model.config.stop_at == "eos" and request.to == request.mode


def forbidden_tokens(special: SpecialTokens, opens: Collection[str] = ()) -> list[int]:
    """The tokens that the model may not choose in text: those that only the packing of documents inserts.

    opens: modalities whose spans the model may open by their <BOD>. <EOS> is always allowed, even where a backbone uses
    one token as both <BOS> and <EOS>.
    """
    layout = [special.bos, special.eod, special.proceed, special.latent]
    layout += [bod for name, bod in special.bod.items() if name not in opens]
    return [token for token in layout if token not in (None, special.eos)]


def free_text_bias(special: SpecialTokens, vocabulary: int, opens: Collection[str] = ()) -> Tensor:
    """The bias (V,) of text logits: -inf for forbidden tokens, 0 for all others."""
    bias = torch.zeros(vocabulary)
    bias[forbidden_tokens(special, opens)] = -torch.inf
    return bias


def are_finite(values: Tensor) -> list[bool]:
    """Whether all numbers in each row of values (M, ...) are finite."""
    return values.isfinite().flatten(1).all(1).tolist()


def can_choose(logits: Tensor) -> list[bool]:
    """Whether each row of logits (M, V) allows a choice: at least one is finite, none is NaN or +inf."""
    return logits.amax(1).isfinite().tolist()


def pick_token(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """A token by its logits (V,): the most likely at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator))
