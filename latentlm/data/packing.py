"""Documents ──▶ token and latent sequences ──▶ packed rows (PAPER §1.1, §1.4).

Place in the flow: 2, between documents whose media are latents and the model's `PackedBatch`.
    <BOS> text… <BOD_image> latents… <EOD> text… <EOS>
Targets: each text position predicts the next token, <BOD> included. In a span of variable length each position predicts
whether the span continues or <EOD> follows. An image ends when its grid is full: its <EOD> is an input, not a target.
With a tokenizer of classes, the class replaces <BOS> and <BOD>, and <BOD> alone is the null condition (PAPER §1.5):
    class latents… <EOD> <EOS>
A document that is longer than a row is an error here; `long_texts.py` splits plain texts before.
Legend: `L` positions of a document, `B` rows, `T` positions of a row, `N` latents, `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..config.modalities import modality
from ..errors import UserError
from ..tokenizers.text import TextTokenizer
from ..types import IGNORE, Document, Latents, LatentSpans, PackedBatch, Text, draw

_KNOWN_TEXTS = 4096
"""Texts whose tokens are kept: prompts recur."""


@dataclass(frozen=True)
class Span:
    """Latents of one segment; the first is the input at position `start` of its document.

    Only targets have features (of a second tokenizer, PAPER §6): given media enter the model without them.
    """

    modality: str
    start: int
    latents: Latents
    target: bool


@dataclass
class EncodedDocument:
    """A document as a sequence: ids, text_targets and end_targets (L,), and the spans of latents."""

    ids: list[int] = field(default_factory=list)
    text_targets: list[int] = field(default_factory=list)
    end_targets: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    opens: str | None = None  # the modality whose first latent the last position predicts

    def __len__(self) -> int:
        return len(self.ids)


class DocumentEncoder:
    """Turns documents into sequences.

    lowercase: condition texts of documents with media are lower-cased (`model.lowercase` of the recipe).
    """

    def __init__(self, tokenizer: TextTokenizer, lowercase: bool = False):
        self.tokenizer = tokenizer
        self.lowercase = lowercase
        self.special = tokenizer.special
        self._encode = lru_cache(_KNOWN_TEXTS)(tokenizer.encode)

    def __call__(self, document: Document, *, unconditional: bool = False, closed: bool = True) -> EncodedDocument:
        """The sequence of `document`.

        unconditional: without the condition segments, beginning at <BOD> (PAPER §1.5).
        closed: whether the last position predicts <EOS>; a prompt stays open.
        Raises UserError for a document without segments, empty text, or media that are not latents yet.
        """
        if self.lowercase and not all(isinstance(s, Text) for s in document.segments):
            document = with_lowercase_conditions(document)
        segments = [s for s in document.segments if not (unconditional and s.condition)]
        if not segments and not (unconditional and not closed):
            raise UserError("a document needs at least one segment" + (" beside its conditions" * unconditional))
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
        """Continue an open prompt with a span of `modality`: appends <BOD>, unless the prompt ends with a class."""
        if not self._ends_with_class(prompt):
            self._token(prompt, self.special.bod[modality])
        prompt.opens = modality

    def _ends_with_class(self, out: EncodedDocument) -> bool:
        return self.tokenizer.is_classes and bool(out.ids) and out.ids[-1] < self.tokenizer.base_size

    def _token(self, out: EncodedDocument, *tokens: int) -> None:
        out.ids += tokens
        out.text_targets += [IGNORE] * len(tokens)
        out.end_targets += [IGNORE] * len(tokens)

    def _next(self, out: EncodedDocument, token: int, loss: bool) -> None:
        """Make `token` the target of the last position, if that is no latent and `loss` is set."""
        if loss and out.ids and out.ids[-1] != self.special.latent:
            out.text_targets[-1] = token

    def _text(self, out: EncodedDocument, segment: Text) -> None:
        if not segment.text:
            raise UserError("a text segment is empty")
        tokens = self._encode(segment.text)
        if not tokens:
            return
        self._next(out, tokens[0], segment.loss)
        start = len(out)
        self._token(out, *tokens)
        if segment.loss:
            out.text_targets[start:-1] = tokens[1:]

    def _latents(self, out: EncodedDocument, segment) -> None:
        if not isinstance(segment.content, Latents):
            raise UserError(f"{segment.modality} segment holds {type(segment.content).__name__}; encode it first")
        name, length = segment.modality, len(segment.content)
        bare = segment.loss or segment.content.features is None
        latents = segment.content if bare else replace(segment.content, features=None)
        if not self._ends_with_class(out):
            self._next(out, self.special.bod[name], segment.loss)
            self._token(out, self.special.bod[name])
        out.spans.append(Span(name, len(out), latents, segment.loss))
        self._token(out, *[self.special.latent] * length)
        if segment.loss and modality(name).ends_itself:
            out.end_targets[-length - 1 :] = [0] * length + [1]
        self._token(out, self.special.eod)


def with_lowercase_conditions(document: Document) -> Document:
    """`document` with the texts of its condition segments in lower case."""
    return document.with_segments(
        tuple(replace(s, text=s.text.lower()) if isinstance(s, Text) and s.condition else s for s in document.segments)
    )


class Packer:
    """Places documents in the rows of one micro-batch, each in the first row with room (first fit)."""

    def __init__(self, rows: int, length: int, latent_dims: dict[str, int], fill: int = 0):
        self.length = length
        self.latent_dims = latent_dims
        self.fill = fill
        self.free = [0] * rows
        self.placed: list[tuple[EncodedDocument, int, int]] = []  # document, row, start

    def add(self, document: EncodedDocument) -> bool:
        """Place `document`; returns False if no row has room. UserError if it is longer than a row."""
        needed = len(document)
        if needed > self.length:
            raise UserError(f"a document of {needed} positions exceeds the row length of {self.length}")
        row = next((r for r, start in enumerate(self.free) if start + needed <= self.length), None)
        if row is None:
            return False
        self.placed.append((document, row, self.free[row]))
        self.free[row] += needed
        return True

    def batch(self, generator: torch.Generator | None = None, seed: int = 0) -> PackedBatch:
        """The packed batch, with latents drawn from their posteriors by `generator`. seed: of the diffusion noise."""
        documents = [document for document, _, _ in self.placed]
        starts = [row * self.length + start for _, row, start in self.placed]
        lengths = np.array([len(document) for document in documents], np.int64)
        where = _ranges(starts, lengths)

        def rows(values: np.ndarray | Iterable[int], fill: int) -> Tensor:
            """(B, T): the values of all documents at their positions, `fill` elsewhere."""
            flat = np.full(len(self.free) * self.length, fill, np.int64)
            flat[where] = values if isinstance(values, np.ndarray) else np.fromiter(values, np.int64, len(where))
            return torch.from_numpy(flat.reshape(len(self.free), self.length))

        spans: dict[str, list[tuple[int, Span]]] = {name: [] for name in self.latent_dims}
        for document, start in zip(documents, starts, strict=True):
            for span in document.spans:
                spans[span.modality].append((start + span.start, span))
        return PackedBatch(
            ids=rows(chain.from_iterable(document.ids for document in documents), self.fill),
            positions=rows(_ranges(np.zeros_like(lengths), lengths), 0),
            documents=rows(np.repeat(np.arange(len(documents)), lengths), -1),
            spans=self._span_ids(documents, starts),
            text_targets=rows(chain.from_iterable(document.text_targets for document in documents), IGNORE),
            end_targets=rows(chain.from_iterable(document.end_targets for document in documents), IGNORE),
            latents={name: _gather(spans[name], dim, generator) for name, dim in self.latent_dims.items()},
            seed=seed,
        )

    def _span_ids(self, documents: list[EncodedDocument], starts: list[int]) -> Tensor:
        """(B, T): number of the span in the batch, -1 outside of spans."""
        spans = [
            (start + span.start, len(span.latents))
            for document, start in zip(documents, starts, strict=True)
            for span in document.spans
        ]
        sizes = np.array([size for _, size in spans], np.int64)
        ids = np.full(len(self.free) * self.length, -1, np.int64)
        ids[_ranges([start for start, _ in spans], sizes)] = np.repeat(np.arange(len(spans)), sizes)
        return torch.from_numpy(ids.reshape(len(self.free), self.length))


def pack(
    documents: Sequence[EncodedDocument], latent_dims: dict[str, int], generator: torch.Generator | None = None
) -> PackedBatch:
    """All `documents` in one row of the needed length. Used for scoring and in tests."""
    packer = Packer(1, sum(map(len, documents)), latent_dims)
    for document in documents:
        packer.add(document)
    return packer.batch(generator)


def _gather(spans: list[tuple[int, Span]], latent_dim: int, generator: torch.Generator | None) -> LatentSpans:
    if not spans:
        empty = torch.zeros(0, latent_dim)
        return LatentSpans(empty, empty, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    latents = [span.latents for _, span in spans]
    sizes = np.array([len(each) for each in latents], np.int64)
    index = _ranges([start for start, _ in spans], sizes)
    features = [each.features for each in latents if each.features is not None]
    featured = np.repeat([each.features is not None for each in latents], sizes)
    means, values = draw(latents, generator)
    return LatentSpans(
        values=values.float(),
        means=means.float(),
        index=torch.from_numpy(index),
        target=torch.from_numpy(np.repeat([span.target for _, span in spans], sizes)),
        features=torch.cat(features).float() if features else None,
        feature_index=torch.from_numpy(index[featured]) if features else None,
    )


def _ranges(starts: Sequence[int] | np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenated ranges [start, start + length): (sum of lengths,) int64."""
    ends = lengths.cumsum()
    return np.arange(lengths.sum()) + np.repeat(np.asarray(starts, np.int64) - ends + lengths, lengths)
