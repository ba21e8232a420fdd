"""Media ──▶ latents, once: the cache between tokenizers and packing.

Place in the flow: 2, documents with media ──▶ the same documents with `Latents`. Every epoch draws new samples from
the posteriors that are kept. Media that are targets also get the features of their modality's second tokenizer, where
there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..config.modalities import modality, second_tokenizers
from ..errors import UserError
from ..types import Document, Latents, Segment, Text
from .latent_files import LatentStore, encode_batch, media_hash, read_latents
from .progress import Progress


class LatentCache:
    """Latents by the identity of the media objects; with `folder` they are also kept on disk, shared by all runs.

    run_folder: where earlier releases kept the latents of a run, as NAME-TOKENIZER.safetensors; such files are read.
    """

    def __init__(
        self,
        tokenizers: dict,
        folder: str | Path | None = None,
        batch_size: int = 64,
        run_folder: Path | None = None,
    ):
        self.tokenizers = tokenizers
        self.store = LatentStore(folder) if folder else None
        self.run_folder = run_folder
        self.batch_size = batch_size
        self._known: dict[int, tuple[object, Latents]] = {}  # id -> media (kept alive), latents

    def prepare(self, documents: Sequence[Document], name: str | None = None, *, quiet: bool = True) -> None:
        """Encode the media of `documents` that are not known yet.

        name: of the source, for the files of earlier releases. Unless `quiet`, stderr shows the progress.
        """
        pending = self._pending(documents, quiet)
        seconds = second_tokenizers()
        for reader in sorted(pending, key=lambda name: name in seconds):  # features go beside latents
            items = list(pending[reader].values())
            for item, latents in zip(items, self._encode(reader, items, name, quiet), strict=True):
                if reader in seconds:
                    known = self._known[id(item)][1]
                    latents = replace(known, features=_beside(known, latents, reader))
                self._known[id(item)] = (item, latents)

    def _pending(self, documents: Sequence[Document], quiet: bool) -> dict[str, dict[int, object]]:
        """Tokenizer -> the media that it still has to encode, by identity. Reads all documents."""
        pending: dict[str, dict[int, object]] = {}
        with Progress("reading", "documents", len(documents), quiet=quiet) as progress:
            for index in range(len(documents)):
                for segment in documents[index].segments:
                    for reader in self._missing(segment):
                        pending.setdefault(reader, {})[id(segment.content)] = segment.content
                progress.add(1)
        return pending

    def resolve(self, document: Document) -> Document:
        """`document` with every medium replaced by its latents; media that are not known are encoded."""
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
        """Names of the tokenizers that still have to encode `segment`. UserError for given latents without features."""
        if isinstance(segment, Text):
            return []
        second = modality(segment.modality).second
        needs_features = segment.loss and second in self.tokenizers
        given = isinstance(segment.content, Latents)
        latents = segment.content if given else self._known.get(id(segment.content), (None, None))[1]
        lacks_features = needs_features and (latents is None or latents.features is None)
        if given and lacks_features:
            raise UserError(f"latents of {segment.modality} are targets without {second} features")
        return [segment.modality] * (latents is None) + [second] * lacks_features

    def _encode(self, reader: str, items: list, name: str | None, quiet: bool) -> list[Latents]:
        """The latents of `items` by the tokenizer `reader`: a modality's, or its second one."""
        if reader not in self.tokenizers:
            raise UserError(f"documents contain {reader}, but the model has no {reader} tokenizer")
        tokenizer = self.tokenizers[reader]
        if self.run_folder is not None and name is not None:
            path = self.run_folder / f"{name}-{reader}.safetensors"
            if path.is_file():
                media = media_hash(tokenizer.modality, items)
                return read_latents(path, {"fingerprint": tokenizer.fingerprint(), "media": media})
        length = modality(tokenizer.modality).length
        order = sorted(range(len(items)), key=lambda i: length(items[i]))  # similar lengths together
        found: list[Latents] = []
        with Progress(f"encoding {reader}", "media", len(items), quiet=quiet) as progress:
            for latents in self._encoded(reader, [items[i] for i in order]):
                found += latents
                progress.add(len(latents))
        by_item = dict(zip(order, found, strict=True))
        return [by_item[i] for i in range(len(items))]

    def _encoded(self, reader: str, media: list) -> Iterator[list[Latents]]:
        """The latents of `media` in order, a few at a time; from disk, or onto it, where there is a folder."""
        tokenizer = self.tokenizers[reader]
        if self.store is not None:
            yield from self.store.encode(reader, tokenizer, media, self.batch_size)
            return
        for start in range(0, len(media), self.batch_size):
            yield encode_batch(tokenizer, media[start : start + self.batch_size])


class ResolvedDocuments(Sequence):
    """Documents with media as latents from a cache; the std of their posteriors is multiplied by `noise`.

    Wider posteriors train the model to continue from latents as inexact as its own samples (docs/numerics.md).
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


def _beside(latents: Latents, features: Latents, second: str) -> Tensor:
    """The features (N, F) that go with latents (N, C). UserError if the two tokenizers differ in rate."""
    if len(features) != len(latents):
        raise UserError(f"the {second} tokenizer gives {len(features)} features for {len(latents)} latents of a medium")
    return features.mean
