"""Turns the engine's events into an answer: piece by piece while it is made, or as segments once it is complete.

Place in the flow: 4, events ──▶ `AnswerReader` ──▶ text and media.
An answer consists of runs: text, and spans of latents. A streamed run returns each piece as soon as it is final. A kept
run collects its tokens or latents and returns itself at its end; `as_segments` then decodes all kept runs of a modality
together. Both give the same media, up to rounding.
Legend: `C` latent channels, `N` latents, `k` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

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

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    Medium = str | Audio | np.ndarray | PILImage
    """A text, a sound, vectors (N, C), or a picture."""

    Piece = Medium
    """Part of a streamed answer: some text, a chunk of sound or vectors, or a whole picture."""


class Run(Protocol):
    """One run of an answer: consecutive tokens, or a span of latents."""

    def add(self, event: Event) -> list:
        """Take a token, a latent or the sound of a latent; returns the pieces that are final now."""

    def end(self) -> list:
        """Returns the pieces that are left at the end of the run."""


class AnswerReader:
    """Turns the events of one request into pieces; `new_run(modality)` makes the object that reads each run."""

    def __init__(self, new_run: Callable[[str], Run]):
        self._new_run = new_run
        self._run: Run | None = None

    def read(self, event: Event) -> list:
        """Take the next event; returns the pieces that are final now. "finish" returns all that are left."""
        if event.kind == "open":
            ended = self._end()
            self._run = self._new_run(event.value)
            return ended
        if event.kind in ("close", "finish"):
            return self._end()
        if self._run is None:  # no event opens a run of text
            self._run = self._new_run("text")
        return self._run.add(event)

    def _end(self) -> list:
        run, self._run = self._run, None
        return run.end() if run is not None else []


# ---------------------------------------------------------------------- streams


def streamed_run(name: str, tokenizers: Mapping[str, Any], decoded: Collection[str]) -> Run:
    """A streamed run of the modality `name`; the engine itself decodes the modalities in `decoded`."""
    if name == "text":
        return StreamedText(tokenizers[name])
    tokenizer = tokenizers[name]
    if name in decoded:
        return DecodedSpan(tokenizer)
    decoder = tokenizer.stream_decoder()
    return WholeSpan(tokenizer) if decoder is None else StreamedSpan(tokenizer, decoder)


class StreamedText:
    """Text, token by token; an incomplete character is held back until its last byte."""

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
    """A medium, decoded latent by latent; pieces that were returned are not kept."""

    def __init__(self, tokenizer: Tokenizer, decoder: StreamDecoder):
        self._tokenizer, self._decoder = tokenizer, decoder

    def add(self, event: Event) -> list:
        return [self._tokenizer.piece(self._decoder.push(event.value[None]))]

    def end(self) -> list:
        return [self._tokenizer.piece(self._decoder.flush())]


class DecodedSpan:
    """A medium that the engine itself decodes, latent by latent."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def add(self, event: Event) -> list:
        return [self._tokenizer.piece(event.value)] if event.kind == "sound" else []

    def end(self) -> list:
        return []


class WholeSpan:
    """A span that can only be decoded once it is complete, such as a picture."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._latents: list[Tensor] = []

    def add(self, event: Event) -> list[Medium]:
        self._latents.append(event.value)
        return []

    def end(self) -> list[Medium]:
        return self._tokenizer.decode([stacked(self._latents, self._tokenizer)])


# ----------------------------------------------------------------- whole answers


class KeptRun:
    """Collects a run: its tokens or latents (C,), and the sound (k,) of each latent that the engine decoded."""

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
    """The segments of each answer, from its runs; the latents of each modality are decoded together for all answers."""
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
    """Latents (C,) as one span (N, C), fp32. An incomplete grid, after a divergence, is filled with zeros."""
    found = torch.stack(list(latents)).float() if latents else torch.zeros(0, tokenizer.latent_dim)
    missing = (tokenizer.num_latents or 0) - len(found)
    return F.pad(found, (0, 0, 0, missing)) if missing > 0 else found


def _without_decoding(run: KeptRun, tokenizers: Mapping[str, Any]) -> Segment | None:
    """The segment of a run of text, or of latents that the engine decoded; None for other runs."""
    tokenizer = tokenizers[run.modality]
    if run.modality == "text":
        return Text(tokenizer.decode(run.values))
    return modality(run.modality).segment(tokenizer.piece(torch.cat(run.sounds))) if run.sounds else None


def answer(output: GenerationOutput) -> Medium:
    """The text or the medium of an output of one modality; several spans of sound or vectors are joined."""
    first, *others = contents(output)
    return joined([first, *others]) if others else first


def contents(output: GenerationOutput) -> list[Medium]:
    """The texts and media of an output, in order."""
    return [each.text if isinstance(each, Text) else each.content for each in output.segments]


def joined(media: Sequence[Audio] | Sequence[np.ndarray]) -> Audio | np.ndarray:
    """Sounds, or arrays (N, C), concatenated in order."""
    if isinstance(media[0], Audio):
        return Audio(torch.cat([clip.samples for clip in media]), media[0].sample_rate)
    return np.concatenate(media)


def check_finite(finish_reason: str) -> None:
    """Raise UserError if the finish reason is "diverged"."""
    if finish_reason == "diverged":
        raise UserError(DIVERGED)
