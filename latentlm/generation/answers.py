"""The consumer of the engine's events: pieces of an answer as they come, or its segments when it is whole.

Place in the flow: 4, events ──▶ `AnswerReader` ──▶ text and media.
A reader follows one request through its runs: text, and spans of latents. What becomes of a run is the run's affair:
one that streams gives pieces as soon as they will not change, one that is kept gives itself at its end, and
`as_segments` then decodes all that was kept of one modality in one go. Both give the same media (to rounding).
Legend: `C` latent channels, `N` latents, `k` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.modalities import modality
from ..errors import UserError
from ..media.sound import Audio
from ..tokenizers.base import StreamDecoder, Tokenizer
from ..types import GenerationOutput, Segment, Text
from .active_request import Event

DIVERGED = "the model diverged: its numbers are no longer finite; try less guidance, or fp32"

Piece = str | Audio | np.ndarray | Segment
"""What a stream gives: a piece of text, a chunk of sound or of vectors, a whole picture as its segment."""


class Run(Protocol):
    """One run of an answer: consecutive tokens, or a span."""

    def add(self, event: Event) -> list:
        """The pieces that a token, a latent or the sound of one completes."""

    def end(self) -> list:
        """The pieces that were held back."""


class AnswerReader:
    """Turns the events of one request into pieces, by a run of `new_run(modality)` for each of its runs."""

    def __init__(self, new_run: Callable[[str], Run]):
        self._new_run = new_run
        self._run: Run | None = None

    def read(self, event: Event) -> list:
        """The pieces that are complete with the next event. After "finish" none is left."""
        if event.kind == "open":
            ended = self._end()
            self._run = self._new_run(event.value)
            return ended
        if event.kind in ("close", "finish"):
            return self._end()
        if self._run is None:  # text has no event of its own that opens it
            self._run = self._new_run("text")
        return self._run.add(event)

    def _end(self) -> list:
        run, self._run = self._run, None
        return run.end() if run is not None else []


# ---------------------------------------------------------------------- streams


def streamed_run(name: str, tokenizers: Mapping[str, Any], heard: Collection[str]) -> Run:
    """A run of this modality that gives pieces as they come. The engine decodes the modalities `heard` itself."""
    if name == "text":
        return StreamedText(tokenizers[name])
    tokenizer = tokenizers[name]
    if name in heard:
        return HeardSpan(tokenizer)
    decoder = tokenizer.stream_decoder()
    return WholeSpan(name, tokenizer) if decoder is None else StreamedSpan(tokenizer, decoder)


class StreamedText:
    """Text, token by token; half a character waits for its other bytes."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = ""

    def add(self, event: Event) -> list[str]:
        self._ids.append(event.value)
        whole = self._tokenizer.decode(self._ids)
        return [] if whole.endswith("\ufffd") else self._rest(whole)

    def end(self) -> list[str]:
        return self._rest(self._tokenizer.decode(self._ids))

    def _rest(self, whole: str) -> list[str]:
        piece, self._sent = whole[len(self._sent) :], whole
        return [piece] if piece else []


class StreamedSpan:
    """A medium, latent by latent, through the tokenizer's stream. Nothing is kept of what was given out."""

    def __init__(self, tokenizer: Tokenizer, decoder: StreamDecoder):
        self._tokenizer, self._decoder = tokenizer, decoder

    def add(self, event: Event) -> list:
        return [self._tokenizer.piece(self._decoder.push(event.value[None]))]

    def end(self) -> list:
        return [self._tokenizer.piece(self._decoder.flush())]


class HeardSpan:
    """A medium that the engine decoded, with each latent."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def add(self, event: Event) -> list:
        return [self._tokenizer.piece(event.value)] if event.kind == "sound" else []

    def end(self) -> list:
        return []


class WholeSpan:
    """A span that can be shown only when it is whole, as a picture."""

    def __init__(self, name: str, tokenizer):
        self._name, self._tokenizer = name, tokenizer
        self._latents: list[Tensor] = []

    def add(self, event: Event) -> list[Segment]:
        self._latents.append(event.value)
        return []

    def end(self) -> list[Segment]:
        latents = stacked(self._latents, self._tokenizer)
        return [modality(self._name).segment(self._tokenizer.decode([latents])[0])]


# ----------------------------------------------------------------- whole answers


class KeptRun:
    """A run that is kept as it is: tokens or latents (C,), and the sound (k,) of latents that the engine decoded."""

    def __init__(self, modality: str):
        self.modality = modality
        self.values: list = []
        self.sounds: list[Tensor] = []

    def add(self, event: Event) -> list[KeptRun]:
        if event.kind == "sound":
            self.sounds.append(event.value.cpu())
        else:
            self.values.append(event.value)
        return []

    def end(self) -> list[KeptRun]:
        return [self]


def as_segments(answers: Sequence[Sequence[KeptRun]], tokenizers: Mapping[str, Any]) -> list[list[Segment]]:
    """The segments of each answer: latents of all answers are decoded together, each modality in one go."""
    segments = {run: _without_decoding(run, tokenizers) for runs in answers for run in runs}
    waiting: dict[str, list[KeptRun]] = {}
    for run, segment in segments.items():
        if segment is None:
            waiting.setdefault(run.modality, []).append(run)
    for name, runs in waiting.items():
        tokenizer = tokenizers[name]
        latents = [stacked(run.values, tokenizer) for run in runs]
        for run, medium in zip(runs, tokenizer.decode(latents), strict=True):
            segments[run] = modality(name).segment(medium)
    return [[segments[run] for run in runs] for runs in answers]


def stacked(latents: Sequence[Tensor], tokenizer: Tokenizer) -> Tensor:
    """Latents (C,) as one span (N, C), fp32. A grid that was not completed, as the model diverged, ends in zeros."""
    found = torch.stack(list(latents)).float() if latents else torch.zeros(0, tokenizer.latent_dim)
    missing = (tokenizer.num_latents or 0) - len(found)
    return F.pad(found, (0, 0, 0, missing)) if missing > 0 else found


def _without_decoding(run: KeptRun, tokenizers: Mapping[str, Any]) -> Segment | None:
    """The segment of text, and of latents that the engine decoded already; None of others."""
    tokenizer = tokenizers[run.modality]
    if run.modality == "text":
        return Text(tokenizer.decode(run.values))
    return modality(run.modality).segment(tokenizer.piece(torch.cat(run.sounds))) if run.sounds else None


def answer(output: GenerationOutput):
    """The one medium that was asked for; several spans of sound or of vectors are one."""
    first, *others = output.segments
    if isinstance(first, Text):
        return first.text
    return joined([segment.content for segment in output.segments]) if others else first.content


def joined(media: Sequence[Audio] | Sequence[np.ndarray]) -> Audio | np.ndarray:
    """Sounds, or arrays (N, C), one after the other."""
    if isinstance(media[0], Audio):
        return Audio(torch.cat([clip.samples for clip in media]), media[0].sample_rate)
    return np.concatenate(media)


def check_finite(finish_reason: str) -> None:
    """UserError for the reason "diverged"."""
    if finish_reason == "diverged":
        raise UserError(DIVERGED)
