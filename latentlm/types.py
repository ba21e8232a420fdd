"""The records that cross module borders: latents, documents, modalities, packed batches.

Place in the flow: every room of the package imports these records. The only computation is a draw from a posterior.
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

    mean (N, C); std and posterior say how a latent z is drawn (PAPER §1.7):
      posterior "sigma":   z = mean + n·std·ε, one n ~ N(0, 1) for the whole example; std = C_σ, a scalar tensor
      posterior "learned": z = mean + std·ε, std (N, C)
      posterior "none":    z = mean
    features (N, F): features of the same medium from the modality's second tokenizer; None without one.
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
        """A draw z (N, C) from the posterior. The generator must be on the device of `mean`."""
        return draw([self], generator)[1]


_LEVEL = {"sigma": (1.0, 0.0), "learned": (0.0, 1.0), "none": (0.0, 0.0)}
"""(a, b) by posterior: the noise of an example has a level of a·n + b standard deviations, n ~ N(0, 1)."""


def perturb(mean: Tensor, level: Tensor | float, std: Tensor, noise: Tensor) -> Tensor:
    """z = mean + level·std·ε: a draw from a posterior, for noise ε ~ N(0, I)."""
    return mean + level * std * noise


def draw(latents: Sequence[Latents], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The means of all `latents` in one tensor, and a draw z from the posterior of each: both (sum of N, C)."""
    means = torch.cat([each.mean for each in latents])
    stds = torch.cat([each.std.expand_as(each.mean) for each in latents])
    noise = torch.randn(means.shape, generator=generator, device=means.device, dtype=means.dtype)
    n = torch.randn(len(latents), generator=generator, device=means.device, dtype=means.dtype)
    a, b = torch.tensor([_LEVEL[each.posterior] for each in latents], dtype=means.dtype).to(means.device).unbind(1)
    sizes = torch.tensor([len(each) for each in latents]).to(means.device)
    levels = (a * n + b).repeat_interleave(sizes, output_size=len(means))[:, None]
    return means, perturb(means, levels, stds, noise)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a document, of one modality.

    condition   given, not generated; training drops it at the recipe's `condition_dropout`, so that guidance works
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
    """Text, used unchanged: no separator is added between segments. Raises UserError unless it is a string."""

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
    """The definition of one continuous modality. Each file of `modalities/` defines one.

    name            key in manifests, recipes and requests, and part of its special token <BOD:name>
    segment         its `Segment` class: segment(content), content a medium or its `Latents`
    tokenizers      kind in a tokenizer's config.json -> (config class, Tokenizer class)
    suffixes        suffixes of the files that `load` reads
    written         suffixes of the files that `save` writes, the recommended one first
    load, save      read a medium from a path, write one to a path; a UserError names the path
    decode          reads a medium from the bytes of a file; a UserError begins with the given name
    is_medium       whether an object is a medium of this modality; tells the parts of a prompt apart
    describe        the size of a medium in words: "32×32" or "1.20 s"
    show            a medium as an HTML page shows it: a PIL image, or an Audio
    digest          bytes that differ between different media; latent caches hash them
    length          length of a medium in seconds or steps; any constant where all have the same number of latents
    ends_itself     True: the text head ends a span with <EOD>. False: every span has as many latents as the grid
    second          name of its optional second tokenizer, which computes features of the same media (PAPER §6)
    from_data       makes a calibrated tokenizer from the training media; None: tokenizers are trained by a recipe
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
    """An ordered list of segments. Every task is a document: the prompt comes first, the answer follows.

    Raises UserError for anything but a list or tuple of segments, and for an empty one.
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
    """`tensor` on `device`. A copy from pinned memory is asynchronous."""
    pinned = torch.device(device).type == "cuda" and not tensor.is_cuda and tensor.is_pinned()
    return tensor.to(device, non_blocking=pinned)


@dataclass
class LatentSpans:
    """All latents of one modality in a packed batch.

    values (N, C)        sampled latents
    means (N, C)         their posterior means
    index (N,)           flat position (row·T + column) at which each is an *input*; the hidden state that predicts it
                         is at index - 1 (the previous latent, or <BOD>)
    target (N,) bool     whether it has a loss
    features (M, F)      added to the input at feature_index (M,); None without a second tokenizer
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
    end_targets (B, T)   in spans of variable length: 1 where <EOD> follows, 0 where the span goes on; IGNORE elsewhere
    latents              spans by modality
    seed                 of this micro-batch's noise and timesteps; the same for any number of processes
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
        """The number of targets of each named loss; the trainer sums them over processes and micro-batches."""
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
        """The same batch in pinned memory, which a GPU can copy asynchronously."""
        return self._each(Tensor.pin_memory, {name: span.pin_memory() for name, span in self.latents.items()})

    def _each(self, change: Callable[[Tensor], Tensor], latents: dict[str, LatentSpans]) -> PackedBatch:
        names = ("ids", "positions", "documents", "spans", "text_targets", "end_targets")
        return replace(self, latents=latents, **{name: change(getattr(self, name)) for name in names})


@dataclass
class MediaBatch:
    """Media as a tokenizer's networks read them.

    media     images (B, 3, H, W), waveforms (B, 1, S) or vectors (B, N, C); the last two are zero-padded at the end
    lengths   (B,) valid samples or vectors of each; not used for images
    """

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
    """The answer to one request: its `segments` in order, with decoded media, and why it ended.

    finish_reason: "stop" (the model ended it), "length" (a limit was reached), or "diverged" (the model
    computed NaN or infinity: the answer ends before it, and the missing latents of a picture are zero).
    """

    segments: tuple[Segment, ...]
    finish_reason: str
    num_steps: int = 0
