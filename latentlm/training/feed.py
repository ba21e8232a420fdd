"""The documents of a recipe's sources with latents for media, and the loaders of batches.

Place in the flow: 5, below the files of the kinds. Media of embedded sources and manifests are encoded into memory
(`data/cache.py`), those of paths once into shards in the run's folder; shards are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..config import DataConfig, MediaConfig, SourceConfig, TrainingConfig
from ..data.ahead import DocumentsAhead, MediaAhead
from ..data.cache import LatentCache, ResolvedDocuments
from ..data.encoding.plan import Job
from ..data.encoding.workers import encode
from ..data.examples import TokenizerConfig, open_media_loader
from ..data.loader import DocumentLoader
from ..data.packing import DocumentEncoder
from ..data.placed import PlacedDocuments
from ..data.script import apply_prompt_format
from ..data.shards import ShardDocuments, check_tokenizers
from ..data.sources import documents
from ..errors import UserError
from ..types import Document, Text
from .distributed import World
from .protocols import Loader

MEDIA_WORKERS = 2
"""Default number of processes that decode the media of a path."""
NUM_FINGERPRINTED = 64
"""Documents of a path, or media of a tokenizer's source, that identify it."""


def open_documents(config: SourceConfig, split: str, layout: str) -> Sequence[Document]:
    """The documents of a source in the model's prompt layout, with media as their source has them."""
    return apply_prompt_format(documents(config, split), layout, config.label)


def with_latents(
    configs: Sequence[SourceConfig],
    sources: Sequence[Sequence[Document]],
    cache: LatentCache,
    folder: Path,
    layout: str,
    world: World,
) -> list[ResolvedDocuments]:
    """The sources with latents for media. The main process encodes what is not cached yet, the others read its files.

    Collective. Raises UserError for shards of other tokenizers than those of `cache`.
    """

    def prepare() -> None:
        for config, source in zip(configs, sources, strict=True):
            if not config.is_streamed:
                cache.prepare((source[i] for i in range(len(source))), source_slug(config))

    def encode_paths() -> None:
        for config in configs:
            if config.path is not None:
                job = Job((config,), {}, str(folder / source_slug(config)), layout=layout)
                encode(job, tokenizers=cache.tokenizers)

    world.on_main(prepare)
    if not world.is_main:
        prepare()
    world.on_main(encode_paths)
    found: list[ResolvedDocuments] = []
    for config, source in zip(configs, sources, strict=True):
        if config.path is not None:
            source = ShardDocuments(str(folder / source_slug(config)))
        if config.shards is not None:
            for path in (config.shards, config.held_out):
                if isinstance(path, str):
                    check_tokenizers(ShardDocuments(path), cache.tokenizers)
        found.append(ResolvedDocuments(source, cache, config.noise))
    return found


def packed_batches(
    config: DataConfig,
    sources: Sequence[ResolvedDocuments],
    encoder: DocumentEncoder,
    latent_dims: dict[str, int],
    training: TrainingConfig,
    world: World,
) -> Loader:
    """The loader of the recipe's documents; threads prepare batches if the recipe says so or a source is on disk."""
    loader = DocumentLoader(
        sources,
        config,
        encoder,
        latent_dims,
        seed=training.seed,
        num_streams=training.global_micro_batches,
        rank=world.rank,
        world=world.size,
    )
    workers = config.workers if config.workers is not None else int(any(c.is_streamed for c in config.sources))
    return DocumentsAhead(loader, workers, pin=world.device.type == "cuda") if workers else loader


def media_batches(
    config: MediaConfig,
    sources: Sequence[Sequence],
    tokenizer: TokenizerConfig,
    training: TrainingConfig,
    world: World,
) -> Loader:
    """The loader of a tokenizer's examples; processes decode media if the recipe says so or a source is a path."""
    arguments = (config, tokenizer, training.seed, training.global_micro_batches, world.rank, world.size)
    loader = open_media_loader(*arguments, sources=sources)
    default = MEDIA_WORKERS if any(source.is_streamed for source in config.sources) else 0
    workers = config.workers if config.workers is not None else default
    if not workers:
        return loader
    opened = "latentlm.data.examples:open_media_loader"
    return MediaAhead(loader, workers, opened, *arguments, pin=world.device.type == "cuda")


def check_lengths(config: DataConfig, sources: list[ResolvedDocuments], encoder: DocumentEncoder, context: int) -> None:
    """Raise UserError, naming source and document, for a document longer than a row or than `context` positions.

    Positions restart with each document, so a row may be longer than the model's context; a document may not. Of
    shards, only documents that may be too long by their number of bytes and latents are read.
    """
    limit, what = min((config.sequence_length, "data.sequence_length"), (context, "the model's context"))
    for source, documents_ in zip(config.sources, sources, strict=True):
        for number in _perhaps_longer(documents_.documents, limit):
            length = len(encoder(documents_[number]))
            if length > limit:
                found = documents_.documents
                where = found.place(number) if isinstance(found, PlacedDocuments) else f"document {number}"
                raise UserError(
                    f"data source {source.label!r} ({source.task}): {where} has {length} positions, {what} is {limit}"
                )


def _perhaps_longer(documents_: Sequence[Document], limit: int) -> Iterable[int]:
    """The numbers of documents that may be longer than `limit` positions."""
    most = documents_.most_positions() if isinstance(documents_, PlacedDocuments) else None
    return range(len(documents_)) if most is None else np.flatnonzero(most > limit).tolist()


def fingerprint_sources(configs: Sequence[SourceConfig], sources: Sequence[Sequence[Document]]) -> list[str | None]:
    """A hash per source over its documents, without their media, whose cached latents have a hash of their own.

    Of a source in memory: texts, order and flags of all documents. Of shards: the lengths of all documents. Of a path:
    the texts of NUM_FINGERPRINTED documents; None if these cannot be read without media.
    """
    return [_fingerprint(config, source) for config, source in zip(configs, sources, strict=True)]


def _fingerprint(config: SourceConfig, source: Sequence[Document]) -> str | None:
    if not config.is_streamed:
        return _digest("\n".join(map(_written, source)))
    if not isinstance(source, PlacedDocuments):
        return None
    most = source.most_positions()
    if most is not None:
        return hashlib.sha256(np.ascontiguousarray(most).tobytes()).hexdigest()[:8]
    num = min(len(source), NUM_FINGERPRINTED)
    return _digest(json.dumps([source.texts(place * len(source) // num) for place in range(num)]))


def _written(document: Document) -> str:
    """A document as JSON, with the modality in place of a medium."""
    parts = [(s.modality, s.text if isinstance(s, Text) else None, s.condition, s.loss) for s in document.segments]
    return json.dumps(parts)


def source_slug(config: SourceConfig) -> str:
    """The file name for the latents of a source."""
    name = config.name or f"{Path(config.label).stem}-{_digest(config.label)}"
    copies = f"warped{config.augmented_copies}" if config.augmented_copies else None
    held_out = f"without{config.held_out}" if isinstance(config.held_out, int | float) else None
    columns = f"columns{_digest(json.dumps(config.columns, sort_keys=True))}" if config.columns else None
    parts = (name, config.task, config.limit, copies, held_out, columns)
    return "-".join(str(part) for part in parts if part is not None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
