"""The records that cross module borders: latents, documents, modalities, packed batches.

Place in the flow: every room of the package speaks in these records; what they compute is a draw from a posterior.
Legend: `B` rows, `T` positions in a row, `N` latents, `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


IGNORE = -100
"""Target value of a position that has no loss."""


@dataclass(frozen=True)
class Latents:
    """The posterior of one image or utterance in model space (normalised by its tokenizer: about zero mean, unit std).

    `mean` (N, C). How a latent is drawn from it (PAPER §1.7):
      posterior "sigma":   z = mean + n·std·ε, one n ~ N(0, 1) for the whole example; std = C_σ, a scalar tensor
      posterior "learned": z = mean + std·ε, std (N, C)
      posterior "none":    z = mean
    features (N, F): what the modality's second tokenizer reads from the same media, where it has one.
    """

    mean: Tensor
    std: Tensor
    posterior: str
    features: Tensor | None = None

    def __len__(self) -> int:
        return self.mean.shape[0]

    def to(self, device: torch.device | str) -> Latents:
        features = None if self.features is None else self.features.to(device)
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), features=features)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw z (N, C) from the posterior; the generator must be on the device of `mean`."""
        return draw([self], generator)[1]


_LEVEL = {"sigma": (1.0, 0.0), "learned": (0.0, 1.0), "none": (0.0, 0.0)}
"""(a, b) by posterior: an example's noise is a·n + b standard deviations strong, n ~ N(0, 1)."""


def draw(latents: Sequence[Latents], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The means of `latents`, one after the other, and a draw z from the posterior of each: (sum of N, C) both."""
    means = torch.cat([each.mean for each in latents])
    stds = torch.cat([each.std.expand_as(each.mean) for each in latents])
    noise = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
    n = torch.randn(len(latents), generator=generator, device=means.device, dtype=means.dtype)
    a, b = torch.tensor([_LEVEL[each.posterior] for each in latents], dtype=means.dtype).to(means.device).unbind(1)
    sizes = torch.tensor([len(each) for each in latents]).to(means.device)
    levels = (a * n + b).repeat_interleave(sizes, output_size=len(means))[:, None]
    return means, means + levels * stds * noise


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a document, of one modality.

    condition   given, not wanted; with the recipe's `condition_dropout` it is left out, so that guidance works
    loss        whether it is a target of training; by default the opposite of `condition`, as in manifests
    """

    modality: ClassVar[str]

    condition: bool = False
    loss: bool | None = None

    def __post_init__(self):
        if self.loss is None:
            object.__setattr__(self, "loss", not self.condition)


@dataclass(frozen=True)
class Text(Segment):
    """Text as it stands; nothing is put between it and its neighbours. UserError for what is no string."""

    text: str
    modality = "text"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.text, str):
            raise UserError(f"Text takes a string, not {type(self.text).__name__}")


@dataclass(frozen=True)
class MediaSegment(Segment):
    """A segment of a continuous modality (`modalities/`). Its content is a medium or its `Latents`; a path is read.

    Raises UserError for content of another type, and for a file that cannot be read.
    """

    content: Any

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.content, Latents):
            object.__setattr__(self, "content", self.medium(self.content))

    @staticmethod
    def medium(content: Any) -> Any:
        """`content` as a medium of this modality, read from its file where it is a path. Raises UserError."""
        raise NotImplementedError


@dataclass(frozen=True)
class Modality:
    """A continuous modality, everything that is particular to it. One file of `modalities/` each holds one.

    name            key in manifests, recipes and requests, and of its special token <BOD:name>
    segment         its `Segment` class: segment(content), content a medium or its `Latents`
    tokenizers      kind in a tokenizer's config.json -> (config class, Tokenizer class)
    suffixes        of the files that `load` reads; `written`: of those that `save` writes, the recommended one first
    load, save      a medium from a path, a medium to a path; UserError, one line, names the path
    decode          a medium from the bytes of such a file; the error begins with the given name
    is_medium       whether an object is a medium of this modality: how a prompt's parts are told apart
    describe        the size of a medium in words, "32×32" or "1.20 s"
    show            a medium as a page shows it: a PIL image, or an Audio
    digest          the bytes that tell one medium from another
    length          how long a medium is, in seconds or steps; of a fixed grid any constant
    ends_itself     True: the text head ends a span (<EOD>). False: a span has as many latents as its grid
    second          name of the second tokenizer that it may have: features of the same media (PAPER §6)
    from_data       a calibrated tokenizer made from the training media; None: tokenizers are trained by a recipe
    """

    name: str
    segment: type[Segment]
    tokenizers: Mapping[str, tuple[type, type]]
    suffixes: tuple[str, ...]
    written: tuple[str, ...]
    load: Callable[[str | Path], Any]
    save: Callable[[Any, str | Path], None]
    decode: Callable[[bytes, str], Any]
    is_medium: Callable[[Any], bool]
    describe: Callable[[Any], str]
    show: Callable[[Any], Any]
    digest: Callable[[Any], bytes]
    length: Callable[[Any], float]
    ends_itself: bool
    second: str | None = None
    from_data: Callable[[Sequence], Any] | None = None


@dataclass(frozen=True)
class Document:
    """An ordered list of segments. Every task is one: prompt = the first segments, answer = those that follow.

    Raises UserError for what is no list of segments, and an empty one.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self):
        if not isinstance(self.segments, list | tuple):
            kind = type(self.segments).__name__
            raise UserError(f"a Document takes a list of segments (latentlm.Text, Image, Speech, …), not {kind}")
        for number, segment in enumerate(self.segments):
            if not isinstance(segment, Segment):
                kind = type(segment).__name__
                raise UserError(f"segment {number} of a Document is latentlm.Text, Image, Speech, …, not {kind}")
        if not self.segments:
            raise UserError("a Document needs at least one segment")
        object.__setattr__(self, "segments", tuple(self.segments))

    def with_segments(self, segments: tuple[Segment, ...]) -> Document:
        return replace(self, segments=segments)


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; from pinned memory without waiting for the copy."""
    pinned = torch.device(device).type == "cuda" and not tensor.is_cuda and tensor.is_pinned()
    return tensor.to(device, non_blocking=pinned)


@dataclass
class LatentSpans:
    """All latents of one modality in a packed batch.

    values (N, C) the sampled latents, means (N, C) their posterior means; index (N,) the flat position (row·T + column)
    at which each is an *input*. The hidden state that predicts it sits at index - 1 (the previous latent, or <BOD>).
    target (N,) bool: has a loss. features (M, F) are added to the input at feature_index (M,); None: there are none.
    """

    values: Tensor
    means: Tensor
    index: Tensor
    target: Tensor
    features: Tensor | None = None
    feature_index: Tensor | None = None

    def to(self, device: torch.device | str) -> LatentSpans:
        return self._each(lambda tensor: _moved(tensor, device))

    def pin_memory(self) -> LatentSpans:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> LatentSpans:
        tensors = (getattr(self, f.name) for f in fields(self))
        return LatentSpans(*(None if tensor is None else change(tensor) for tensor in tensors))


@dataclass
class PackedBatch:
    """Documents packed into rows. Padding has document id -1; positions restart with every document.

    ids (B, T)           token at each position; <latent> where the input is a latent
    positions (B, T)     position in its own document, for RoPE
    documents (B, T)     document id within the row, -1 for padding: attention never crosses documents
    spans (B, T)         id of the span whose latent is the input here, -1 elsewhere; no two spans share an id
    text_targets (B, T)  next token, IGNORE where none
    end_targets (B, T)   in variable-length spans: 1 where <EOD> follows, 0 where the span goes on, IGNORE elsewhere
    latents              spans by modality
    seed                 of the noise and timesteps of this micro-batch: equal on one process and on many
    """

    ids: Tensor
    positions: Tensor
    documents: Tensor
    spans: Tensor
    text_targets: Tensor
    end_targets: Tensor
    latents: dict[str, LatentSpans]
    seed: int = 0

    def target_counts(self) -> dict[str, int]:
        """How many targets each named loss has here; the trainer sums these over ranks and accumulation."""
        counts = {
            "text": int((self.text_targets != IGNORE).sum()),
            "end": int((self.end_targets != IGNORE).sum()),
        }
        return counts | {name: int(span.target.sum()) for name, span in self.latents.items()}

    @property
    def num_tokens(self) -> int:
        return int((self.documents >= 0).sum())

    def to(self, device: torch.device | str) -> PackedBatch:
        latents = {name: span.to(device) for name, span in self.latents.items()}
        return self._each(lambda tensor: _moved(tensor, device), latents)

    def pin_memory(self) -> PackedBatch:
        """The same batch in pinned memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory, {name: span.pin_memory() for name, span in self.latents.items()})

    def _each(self, change: Callable[[Tensor], Tensor], latents: dict[str, LatentSpans]) -> PackedBatch:
        names = ("ids", "positions", "documents", "spans", "text_targets", "end_targets")
        return replace(self, latents=latents, **{name: change(getattr(self, name)) for name in names})


@dataclass
class MediaBatch:
    """Media for tokenizer training. media: images (B, 3, H, W), waveforms (B, 1, S) or vectors (B, N, C), the last two
    padded with zeros at the end; lengths (B,) valid samples or vectors of each (for images: B times H·W, unused)."""

    media: Tensor
    lengths: Tensor
    seed: int = 0

    def target_counts(self) -> dict[str, int]:
        return {"examples": self.media.shape[0]}

    @property
    def num_tokens(self) -> int:
        return self.media.shape[0]

    def to(self, device: torch.device | str) -> MediaBatch:
        return replace(self, media=_moved(self.media, device), lengths=_moved(self.lengths, device))

    def pin_memory(self) -> MediaBatch:
        return replace(self, media=self.media.pin_memory(), lengths=self.lengths.pin_memory())


@dataclass(frozen=True)
class GenerationOutput:
    """What one request produced: `segments` in order, with decoded media, and why it stopped.

    finish_reason: "stop" (the model ended by itself), "length" (a limit was reached), or "diverged" (what the model
    computed was no longer finite: the answer is what came before; the rest of a picture has latents of zero).
    """

    segments: tuple[Segment, ...]
    finish_reason: str
    num_steps: int = 0
