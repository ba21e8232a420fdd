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

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..types import FEATURES, Audio, Document, Latents, Segment, Text


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
        featured: dict[str, dict[int, object]] = {}
        for document in documents:
            for segment in document.segments:
                if self._is_ready(segment):
                    continue
                second = FEATURES.get(segment.modality)
                if isinstance(segment.content, Latents):
                    if segment.loss and second in self.tokenizers and segment.content.features is None:
                        raise ValueError(f"latents of {segment.modality} to learn come without {second} features")
                    continue
                key = id(segment.content)
                if key not in self._known:
                    pending.setdefault(segment.modality, {})[key] = segment.content
                if segment.loss and second in self.tokenizers and not self._has_features(key):
                    featured.setdefault(second, {})[key] = segment.content
        for modality, media in pending.items():
            items = list(media.values())
            for item, latents in zip(items, self._encode(modality, items, name), strict=True):
                self._known[id(item)] = (item, latents)
        for second, media in featured.items():
            items = list(media.values())
            for item, features in zip(items, self._encode(second, items, name), strict=True):
                latents = self._known[id(item)][1]
                self._known[id(item)] = (item, replace(latents, features=_beside(latents, features, second)))

    def resolve(self, document: Document) -> Document:
        """`document` with every medium replaced by its latents; unknown media are encoded now."""
        if not all(map(self._is_ready, document.segments)):
            self.prepare([document])
        segments = tuple(
            segment
            if isinstance(segment, Text) or isinstance(segment.content, Latents)
            else type(segment)(self._known[id(segment.content)][1], condition=segment.condition, loss=segment.loss)
            for segment in document.segments
        )
        return Document(segments)

    def _is_ready(self, segment: Segment) -> bool:
        """Whether `segment` is text, or a medium whose latents, and the features it needs, are known."""
        if isinstance(segment, Text):
            return True
        if isinstance(segment.content, Latents) or id(segment.content) not in self._known:
            return False
        needs = segment.loss and FEATURES.get(segment.modality) in self.tokenizers
        return not needs or self._has_features(id(segment.content))

    def _has_features(self, key: int) -> bool:
        return key in self._known and self._known[key][1].features is not None

    def _encode(self, modality: str, items: list, name: str | None) -> list[Latents]:
        if modality not in self.tokenizers:
            raise ValueError(f"documents contain {modality}, but the model has no {modality} tokenizer")
        tokenizer = self.tokenizers[modality]
        if self.folder is None or name is None:
            return self._encode_all(tokenizer, items)
        path = self.folder / f"{name}-{modality}.safetensors"
        identity = {"fingerprint": tokenizer.fingerprint(), "media": media_hash(items)}
        if path.is_file():
            return read_latents(path, identity)
        latents = self._encode_all(tokenizer, items)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_latents(path, latents, identity)
        return latents

    def _encode_all(self, tokenizer, items: list) -> list[Latents]:
        order = sorted(range(len(items)), key=lambda i: _size(items[i]))  # like lengths together
        latents: list[Latents | None] = [None] * len(items)
        for start in range(0, len(items), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, encoded in zip(chosen, tokenizer.encode([items[i] for i in chosen]), strict=True):
                latents[i] = encoded.to("cpu")
        return latents


class ResolvedDocuments(Sequence):
    """A document source seen through a cache."""

    def __init__(self, documents: Sequence[Document], cache: LatentCache):
        self.documents = documents
        self.cache = cache

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        return self.cache.resolve(self.documents[index])


def write_latents(path: Path, latents: Sequence[Latents], identity: dict[str, str]) -> None:
    """All latents of one modality in one file, atomically."""
    posterior = latents[0].posterior
    tensors = {
        "mean": torch.cat([item.mean for item in latents]),
        "length": torch.tensor([len(item) for item in latents]),
        "std": torch.cat([item.std for item in latents]) if posterior == "learned" else latents[0].std.reshape(1),
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"identity": json.dumps(identity), "posterior": posterior})
    temporary.replace(path)


def read_latents(path: Path, identity: dict[str, str]) -> list[Latents]:
    """Latents written by `write_latents`; ValueError naming the file when tokenizer or media differ."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        found = json.loads(metadata["identity"])
        for key, what in (("fingerprint", "another tokenizer"), ("media", "other media")):
            if found[key] != identity[key]:
                raise ValueError(
                    f"{path}: latents of {what} ({key} {found[key]}, expected {identity[key]}); delete it to go on"
                )
        mean, length, std = (file.get_tensor(key) for key in ("mean", "length", "std"))
    posterior = metadata["posterior"]
    lengths = length.tolist()
    means = mean.split(lengths)
    stds = std.split(lengths) if posterior == "learned" else [std[0]] * len(means)
    return [Latents(m, s, posterior) for m, s in zip(means, stds, strict=True)]


def _beside(latents: Latents, features: Latents, second: str) -> Tensor:
    """The features (N, F) of latents (N, C). ValueError where the two tokenizers do not run at one rate."""
    if len(features) != len(latents):
        raise ValueError(
            f"the {second} tokenizer gives {len(features)} features for {len(latents)} latents of a medium"
        )
    return features.mean


def media_hash(items: Sequence) -> str:
    """Short hash of the media's content, in order."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, Audio):
            digest.update(np.int64(item.sample_rate).tobytes() + item.samples.numpy().tobytes())
        else:
            digest.update(f"{item.mode}{item.size}".encode() + item.tobytes())
    return digest.hexdigest()[:16]


def _size(item) -> int:
    return item.samples.shape[-1] if isinstance(item, Audio) else 0
