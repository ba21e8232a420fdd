"""Media ──▶ latents, once: the cache between tokenizers and packing.

Place in the flow: 2, documents with media ──▶ the same documents with `Latents`.
Posterior means and deviations are kept, not samples: every epoch draws anew. What is a target also gets the features of
its modality's second tokenizer, where there is one. A file records the tokenizer's fingerprint
and the media it came from; a mismatch is an error, since latents of another tokenizer train silently wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config.modalities import modality, second_tokenizers
from ..errors import UserError
from ..types import Document, Latents, Segment, Text
from ..weights import replacing


class LatentCache:
    """Latents of media objects by identity; `folder` keeps them on disk under a name as well."""

    def __init__(self, tokenizers: dict, folder: str | Path | None = None, batch_size: int = 64):
        self.tokenizers = tokenizers
        self.folder = Path(folder) if folder else None
        self.batch_size = batch_size
        self._known: dict[int, tuple[object, Latents]] = {}  # id -> media (kept alive), latents

    def prepare(self, documents: Iterable[Document], name: str | None = None) -> None:
        """Encode all media of `documents` that are not known yet; with a name, through `folder`/name.safetensors."""
        pending: dict[str, dict[int, object]] = {}
        for document in documents:
            for segment in document.segments:
                for reader in self._missing(segment):
                    pending.setdefault(reader, {})[id(segment.content)] = segment.content
        seconds = second_tokenizers()
        for reader in sorted(pending, key=lambda name: name in seconds):  # features go beside latents
            items = list(pending[reader].values())
            for item, latents in zip(items, self._encode(reader, items, name), strict=True):
                if reader in seconds:
                    known = self._known[id(item)][1]
                    latents = replace(known, features=_beside(known, latents, reader))
                self._known[id(item)] = (item, latents)

    def resolve(self, document: Document) -> Document:
        """`document` with every medium replaced by its latents; unknown media are encoded now."""
        if any(map(self._missing, document.segments)):
            self.prepare([document])
        segments = tuple(
            segment
            if isinstance(segment, Text) or isinstance(segment.content, Latents)
            else type(segment)(self._known[id(segment.content)][1], condition=segment.condition, loss=segment.loss)
            for segment in document.segments
        )
        return Document(segments)

    def _missing(self, segment: Segment) -> list[str]:
        """The tokenizers that still have to read `segment`. UserError where given latents lack features to learn."""
        if isinstance(segment, Text):
            return []
        second = modality(segment.modality).second
        needs_features = segment.loss and second in self.tokenizers
        given = isinstance(segment.content, Latents)
        latents = segment.content if given else self._known.get(id(segment.content), (None, None))[1]
        lacks_features = needs_features and (latents is None or latents.features is None)
        if given and lacks_features:
            raise UserError(f"latents of {segment.modality} to learn come without {second} features")
        return [segment.modality] * (latents is None) + [second] * lacks_features

    def _encode(self, reader: str, items: list, name: str | None) -> list[Latents]:
        """The latents of `items` by the tokenizer `reader`: a modality's, or its second one."""
        if reader not in self.tokenizers:
            raise UserError(f"documents contain {reader}, but the model has no {reader} tokenizer")
        tokenizer = self.tokenizers[reader]
        if self.folder is None or name is None:
            return self._encode_all(tokenizer, items)
        path = self.folder / f"{name}-{reader}.safetensors"
        identity = {"fingerprint": tokenizer.fingerprint(), "media": media_hash(tokenizer.modality, items)}
        if path.is_file():
            return read_latents(path, identity)
        latents = self._encode_all(tokenizer, items)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_latents(path, latents, identity)
        return latents

    def _encode_all(self, tokenizer, items: list) -> list[Latents]:
        length = modality(tokenizer.modality).length
        order = sorted(range(len(items)), key=lambda i: length(items[i]))  # like lengths together
        latents: list[Latents | None] = [None] * len(items)
        for start in range(0, len(items), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, encoded in zip(chosen, tokenizer.encode([items[i] for i in chosen]), strict=True):
                latents[i] = encoded.to("cpu")
        return latents


class ResolvedDocuments(Sequence):
    """A document source seen through a cache, its posteriors `noise` times as wide.

    Wider than the tokenizer's, they teach to go on from latents as far off as a model's own may be (docs/numerics.md).
    """

    def __init__(self, documents: Sequence[Document], cache: LatentCache, noise: float = 1.0):
        self.documents = documents
        self.cache = cache
        self.noise = noise

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        document = self.cache.resolve(self.documents[index])
        if self.noise == 1:
            return document
        return document.with_segments(tuple(self._wider(segment) for segment in document.segments))

    def _wider(self, segment: Segment) -> Segment:
        if isinstance(segment, Text):
            return segment
        return replace(segment, content=replace(segment.content, std=segment.content.std * self.noise))


def write_latents(path: Path, latents: Sequence[Latents], identity: dict[str, str]) -> None:
    """All latents of one modality in one file, atomically. OSError naming it where it cannot be written."""
    posterior = latents[0].posterior
    tensors = {
        "mean": torch.cat([item.mean for item in latents]),
        "length": torch.tensor([len(item) for item in latents]),
        "std": torch.cat([item.std for item in latents]) if posterior == "learned" else latents[0].std.reshape(1),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"identity": json.dumps(identity), "posterior": posterior})


def read_latents(path: Path, identity: dict[str, str]) -> list[Latents]:
    """Latents written by `write_latents`; UserError naming a file of another tokenizer or media, or a broken one."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found, posterior = json.loads(metadata["identity"]), metadata["posterior"]
            mean, length, std = (file.get_tensor(key) for key in ("mean", "length", "std"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not readable as latents ({error}); delete it to go on") from None
    for key, what in (("fingerprint", "another tokenizer"), ("media", "other media")):
        if found.get(key) != identity[key]:
            raise UserError(
                f"{path}: latents of {what} ({key} {found.get(key)}, expected {identity[key]}); delete it to go on"
            )
    lengths = length.tolist()
    means = mean.split(lengths)
    stds = std.split(lengths) if posterior == "learned" else [std[0]] * len(means)
    return [Latents(m, s, posterior) for m, s in zip(means, stds, strict=True)]


def _beside(latents: Latents, features: Latents, second: str) -> Tensor:
    """The features (N, F) of latents (N, C). UserError where the two tokenizers do not run at one rate."""
    if len(features) != len(latents):
        raise UserError(f"the {second} tokenizer gives {len(features)} features for {len(latents)} latents of a medium")
    return features.mean


def media_hash(name: str, items: Sequence) -> str:
    """Short hash of the content of media of modality `name`, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(modality(name).digest(item))
    return digest.hexdigest()[:16]
