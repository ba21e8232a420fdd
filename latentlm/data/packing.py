"""Documents ──▶ token and latent sequences ──▶ packed rows (PAPER §1.1, §1.4; DESIGN §2).

Place in the flow: 2, between documents whose media are already latents and the model's `PackedBatch`.
    <BOS> text… <BOD_image> latents… <EOD> text… <EOS>
Targets: text predicts what follows it, <BOD> included. In a variable-length span every position says whether the span
goes on or <EOD> follows; an image ends at its grid, so there <EOD> is written but not learnt.
Where texts are classes, the class takes the place of <BOS> and <BOD>, and <BOD> alone is its null (PAPER §1.5):
    class latents… <EOD> <EOS>
Legend: `L` positions of a document, `B` rows, `T` positions of a row, `N` latents, `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..tokenizers.text import TextTokenizer
from ..types import IGNORE, Document, Latents, LatentSpans, PackedBatch, Text

VARIABLE_LENGTH = frozenset({"speech"})
"""Modalities whose spans the model ends by itself."""


@dataclass(frozen=True)
class Span:
    """Latents of one segment: the first sits at position `start` of its document as an input.

    Features go with targets alone: what a model is given comes without, what it says comes with them (PAPER §6).
    """

    modality: str
    start: int
    latents: Latents
    target: bool


@dataclass
class EncodedDocument:
    """One document as the model sees it: ids, text_targets, end_targets (L,) int64, and the spans of latents."""

    ids: list[int] = field(default_factory=list)
    text_targets: list[int] = field(default_factory=list)
    end_targets: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    opens: str | None = None  # the modality whose first latent the last position predicts

    def __len__(self) -> int:
        return len(self.ids)


class DocumentEncoder:
    """Turns documents into sequences. `unconditional` drops the condition segments and starts at <BOD> (PAPER §1.5)."""

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        self.special = tokenizer.special

    def __call__(self, document: Document, *, unconditional: bool = False, closed: bool = True) -> EncodedDocument:
        """The sequence of `document`; `closed` ends it with <EOS>, a prompt stays open.

        Raises ValueError for a document without segments, empty text, or media that are not yet latents.
        """
        segments = [s for s in document.segments if not (unconditional and s.condition)]
        if not segments and not (unconditional and not closed):
            raise ValueError("a document needs at least one segment" + (" beside its conditions" * unconditional))
        out = EncodedDocument()
        begins_at_span = unconditional and (not segments or segments[0].modality != "text")
        if self.special.bos is not None and not begins_at_span:
            self._token(out, self.special.bos)
        for segment in segments:
            if isinstance(segment, Text):
                self._text(out, segment)
            else:
                self._latents(out, segment)
        if closed:
            self._next(out, self.special.eos, segments[-1].loss)
        return out

    def open_span(self, prompt: EncodedDocument, modality: str) -> None:
        """Let an open prompt go on in `modality`: its last position becomes <BOD>, unless a class stands there."""
        if not self._ends_with_class(prompt):
            self._token(prompt, self.special.bod[modality])
        prompt.opens = modality

    def _ends_with_class(self, out: EncodedDocument) -> bool:
        return self.tokenizer.is_classes and bool(out.ids) and out.ids[-1] < self.tokenizer.base_size

    def _token(self, out: EncodedDocument, token: int) -> None:
        out.ids.append(token)
        out.text_targets.append(IGNORE)
        out.end_targets.append(IGNORE)

    def _next(self, out: EncodedDocument, token: int, loss: bool) -> None:
        """Let the last position predict `token`, if it is text that does so and it counts."""
        if loss and out.ids and out.ids[-1] != self.special.latent:
            out.text_targets[-1] = token

    def _text(self, out: EncodedDocument, segment: Text) -> None:
        if not segment.text:
            raise ValueError("a text segment is empty")
        for token in self.tokenizer.encode(segment.text):
            self._next(out, token, segment.loss)
            self._token(out, token)

    def _latents(self, out: EncodedDocument, segment) -> None:
        if not isinstance(segment.content, Latents):
            raise ValueError(f"{segment.modality} segment holds {type(segment.content).__name__}; encode it first")
        name, length = segment.modality, len(segment.content)
        latents = segment.content if segment.loss else replace(segment.content, features=None)
        if not self._ends_with_class(out):
            self._next(out, self.special.bod[name], segment.loss)
            self._token(out, self.special.bod[name])
        out.spans.append(Span(name, len(out), latents, segment.loss))
        for _ in range(length):
            self._token(out, self.special.latent)
        if name in VARIABLE_LENGTH and segment.loss:
            out.end_targets[-length - 1 :] = [0] * length + [1]
        self._token(out, self.special.eod)


class Packer:
    """Fills the rows of one micro-batch, first fit, until a document fits no more."""

    def __init__(self, rows: int, length: int, latent_dims: dict[str, int], fill: int = 0):
        self.length = length
        self.latent_dims = latent_dims
        self.fill = fill
        self.free = [0] * rows
        self.placed: list[tuple[EncodedDocument, int, int]] = []  # document, row, start

    def add(self, document: EncodedDocument) -> bool:
        """Place `document`; False when no row has room. ValueError when it is longer than a row."""
        if len(document) > self.length:
            raise ValueError(f"a document of {len(document)} positions exceeds the row length of {self.length}")
        row = next((r for r, start in enumerate(self.free) if start + len(document) <= self.length), None)
        if row is None:
            return False
        self.placed.append((document, row, self.free[row]))
        self.free[row] += len(document)
        return True

    def batch(self, generator: torch.Generator | None = None, seed: int = 0) -> PackedBatch:
        """The packed batch; latents are drawn from their posteriors with `generator`."""
        shape = (len(self.free), self.length)
        ids = np.full(shape, self.fill, np.int64)
        positions = np.zeros(shape, np.int64)
        owners = np.full(shape, -1, np.int64)
        text_targets = np.full(shape, IGNORE, np.int64)
        end_targets = np.full(shape, IGNORE, np.int64)
        spans: dict[str, list[tuple[int, Span]]] = {name: [] for name in self.latent_dims}
        for number, (document, row, start) in enumerate(self.placed):
            where = slice(start, start + len(document))
            ids[row, where] = document.ids
            positions[row, where] = np.arange(len(document))
            owners[row, where] = number
            text_targets[row, where] = document.text_targets
            end_targets[row, where] = document.end_targets
            for span in document.spans:
                spans[span.modality].append((row * self.length + start + span.start, span))
        latents = {name: _gather(spans[name], dim, generator) for name, dim in self.latent_dims.items()}
        tensors = map(torch.from_numpy, (ids, positions, owners, text_targets, end_targets))
        return PackedBatch(*tensors, latents=latents, seed=seed)


def pack(
    documents: Sequence[EncodedDocument], latent_dims: dict[str, int], generator: torch.Generator | None = None
) -> PackedBatch:
    """All `documents` in one row, as long as they need. Used for scoring and in tests."""
    packer = Packer(1, sum(map(len, documents)), latent_dims)
    for document in documents:
        packer.add(document)
    return packer.batch(generator)


def _gather(spans: list[tuple[int, Span]], latent_dim: int, generator: torch.Generator | None) -> LatentSpans:
    if not spans:
        empty = torch.zeros(0, latent_dim)
        return LatentSpans(empty, empty, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    places = [torch.arange(start, start + len(span.latents)) for start, span in spans]
    featured = [i for i, (_, span) in enumerate(spans) if span.latents.features is not None]
    return LatentSpans(
        values=torch.cat([span.latents.sample(generator) for _, span in spans]).float(),
        means=torch.cat([span.latents.mean for _, span in spans]).float(),
        index=torch.cat(places),
        target=torch.cat([torch.full((len(span.latents),), span.target) for _, span in spans]),
        features=torch.cat([spans[i][1].latents.features for i in featured]).float() if featured else None,
        feature_index=torch.cat([places[i] for i in featured]) if featured else None,
    )
