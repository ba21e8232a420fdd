"""The documents of a recipe's sources with latents for media, and the loaders of batches.

Place in the flow: 5, below the files of the kinds. Embedded sources and manifests are encoded into memory
(`data/cache.py`), paths into shards, once for all runs; shards are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import DataConfig, MediaConfig, SourceConfig, TrainingConfig
from ..data.ahead import DocumentsAhead, MediaAhead
from ..data.cache import LatentCache, ResolvedDocuments
from ..data.cache_dir import default_cache_dir
from ..data.encoding.plan import Job, shared_folder
from ..data.encoding.workers import encode
from ..data.examples import TokenizerConfig, open_media_loader
from ..data.loader import DocumentLoader
from ..data.long_texts import SMALLEST, SplitTexts, cuts, is_plain_text
from ..data.packing import DocumentEncoder
from ..data.placed import PlacedDocuments, place_of
from ..data.progress import Progress
from ..data.script import apply_prompt_format
from ..data.shards import ShardDocuments, check_tokenizers
from ..data.sources import documents
from ..errors import UserError, notice
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

    folder: the folder of this run, where earlier releases kept the latents.

    Collective. Raises UserError for shards of other tokenizers than those of `cache`.
    """

    def prepare() -> None:
        for config, source in zip(configs, sources, strict=True):
            if not config.is_on_disk:
                cache.prepare(source, source_slug(config), quiet=not world.is_main)

    def encode_paths() -> dict[str, str]:
        places = {}
        for config in configs:
            if config.path is not None:
                job = Job((config,), {}, str(folder / source_slug(config)), layout=layout)
                job = job.into(shared_folder(job, cache.tokenizers, cache.store.folder))
                encode(job, tokenizers=cache.tokenizers, wait=True)
                places[source_slug(config)] = job.out
        return places

    if world.is_main and cache.tokenizers and any(config.shards is None for config in configs):
        said = f"encoded media are kept in {cache.store.folder} (LATENTLM_CACHE chooses another folder)"
        print(said, file=sys.stderr, flush=True)
    world.on_main(prepare)
    if not world.is_main:
        prepare()
    places = world.on_main(encode_paths)
    found: list[ResolvedDocuments] = []
    for config, source in zip(configs, sources, strict=True):
        if config.path is not None:
            source = ShardDocuments(places[source_slug(config)])
        if config.shards is not None:
            for path in (config.shards, config.held_out):
                if isinstance(path, str):
                    check_tokenizers(ShardDocuments(path), cache.tokenizers)
        found.append(ResolvedDocuments(source, cache, config.noise))
    return found


def latents_folder(run_folder: Path, world: World) -> Path:
    """The folder for encoded media: the cache of this machine, which its runs share, or, for a run on several machines,
    the run's own folder, which all of them see."""
    return default_cache_dir() / "latents" if world.size == world.local_size else run_folder / "latents"


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
        num_lanes=training.global_micro_batches,
        rank=world.rank,
        world=world.size,
    )
    workers = config.workers if config.workers is not None else int(any(c.is_on_disk for c in config.sources))
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
    default = MEDIA_WORKERS if any(source.is_on_disk for source in config.sources) else 0
    workers = config.workers if config.workers is not None else default
    if not workers:
        return loader
    opened = "latentlm.data.examples:open_media_loader"
    return MediaAhead(loader, workers, opened, *arguments, pin=world.device.type == "cuda")


def fit_rows(
    config: DataConfig, sources: list[ResolvedDocuments], encoder: DocumentEncoder, context: int, world: World
) -> list[ResolvedDocuments]:
    """The sources with documents that fit a row and `context`: longer plain texts are split (`data/long_texts.py`).

    Collective. Raises UserError naming the first other document that is too long. Positions begin anew with each
    document, so rows may be longer than the model's context, documents not. Of shards, only documents with enough bytes
    and latents to be too long are read.
    """
    limit, what = min((config.sequence_length, "data.sequence_length"), (context, "the model's context"))
    pairs = list(zip(config.sources, sources, strict=True))
    cut = world.on_main(lambda: [_cuts(each, source, encoder, limit, what) for each, source in pairs])
    return [
        ResolvedDocuments(SplitTexts(source.documents, found, each.label), source.cache, source.noise)
        if found
        else source
        for (each, source), found in zip(pairs, cut, strict=True)
    ]


def _cuts(
    config: SourceConfig, source: ResolvedDocuments, encoder: DocumentEncoder, limit: int, what: str
) -> dict[int, list[int]]:
    """The places to cut each plain text of more than `limit` positions, by number of the document."""
    found: dict[int, list[int]] = {}
    numbers = _perhaps_longer(source.documents, limit)
    with Progress("measuring", "documents", len(numbers)) as progress:
        for number in numbers:
            try:
                document = source[number]
                length = len(encoder(document))
            except UserError as error:
                raise UserError(_at(source, config, number, str(error))) from None
            progress.add(1)
            if length <= limit:
                continue
            (first, *_) = document.segments
            if is_plain_text(document) and limit > SMALLEST and not encoder.tokenizer.is_classes:
                found[number] = cuts(first.text, encoder.tokenizer.encode, limit - 1)
                continue
            said = f"has {length} positions, but {what} is {limit}; only plain text is split"
            raise UserError(_at(source, config, number, said, ""))
    if found:
        pieces = len(found) + sum(map(len, found.values()))
        notice(f"{config.label}: {len(found)} texts of more than {limit} positions are split into {pieces} documents")
    return found


def _at(source: ResolvedDocuments, config: SourceConfig, number: int, said: str, colon: str = ":") -> str:
    """`said` with the place of a document in front, unless it begins with that."""
    where = place_of(source.documents, number, config.label)
    return said if said.startswith(where) else f"{where}{colon} {said}"


def _perhaps_longer(documents_: Sequence[Document], limit: int) -> Sequence[int]:
    """The numbers of the documents that may take more than `limit` positions."""
    most = documents_.most_positions() if isinstance(documents_, PlacedDocuments) else None
    return range(len(documents_)) if most is None else np.flatnonzero(most > limit).tolist()


def fingerprint_sources(configs: Sequence[SourceConfig], sources: Sequence[Sequence[Document]]) -> list[str | None]:
    """A hash per source over its documents, without their media, whose cached latents have a hash of their own.

    Of a source in memory: texts, order and flags of all documents. Of shards: the lengths of all documents. Of a path:
    the texts of NUM_FINGERPRINTED documents; None if these cannot be read without media.
    """
    return [_fingerprint(config, source) for config, source in zip(configs, sources, strict=True)]


def _fingerprint(config: SourceConfig, source: Sequence[Document]) -> str | None:
    if not config.is_on_disk:
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
