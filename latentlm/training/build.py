"""A recipe ──▶ tokenizers, model, loader: everything a Trainer needs.

Place in the flow: between `config.py` and `trainer.py`; `run.py` calls it in every process with equal results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import modality_specs, resolve
from ..config import DataConfig, LatentLMRecipe, MediaConfig, SourceConfig, SpeechTokenizerConfig
from ..config.modalities import modalities, modality_names, second_tokenizers, tokenizer_names
from ..data.cache import LatentCache, ResolvedDocuments
from ..data.loader import DocumentLoader, MediaLoader
from ..data.packing import DocumentEncoder
from ..data.script import laid_out
from ..data.sources import documents, media, modalities_in
from ..data.task_source import Concatenated
from ..generation.pipeline import load
from ..interop.hf_llm import Backbone
from ..media.picture import image_to_tensor
from ..model import adapter
from ..model.latentlm import LatentLM
from ..tokenizers.load import load_tokenizer
from ..tokenizers.text import TextTokenizer
from ..types import Document, Text
from .distributed import World
from .folder import check_resumed
from .held_out import choose


@dataclass
class LatentLMRun:
    """What training a language model needs, built from its recipe."""

    model: LatentLM
    tokenizers: dict
    loader: DocumentLoader
    documents: list[ResolvedDocuments]  # by source, media as latents
    held_out: list[Document]  # to score while it trains, media as latents; in the main process alone
    identity: dict  # what a resumed run must agree on


def build_latentlm(recipe: LatentLMRecipe, folder: Path, world: World) -> LatentLMRun:
    """Tokenizers first, then every medium encoded once (main process; the others read its file), then the model.

    With `model.start` both come from there; a backbone fills the transformer and the text side of the model, and brings
    the text tokenizer. A model that is asked by scripts learns from documents that are laid out alike. What the model
    begins with is the same in every process.
    """
    start = load(recipe.model.start, device=world.device) if recipe.model.start else None
    backbone = Backbone.open(recipe.model.backbone) if recipe.model.backbone else None
    configs = recipe.data.sources
    layout = (start.model.config if start else recipe.model).prompt
    sources = [_documents(config, "train", layout) for config in configs]
    tokenizers = start.tokenizers if start else build_tokenizers(recipe, sources, world.device, backbone)
    fingerprints = {"fingerprints": {name: tokenizer.fingerprint() for name, tokenizer in tokenizers.items()}}
    check_resumed(folder, fingerprints)  # or the latents of a run that goes on would be found to be another tokenizer's
    cache = LatentCache({name: t for name, t in tokenizers.items() if name != "text"}, folder / "latents")

    def prepare() -> None:
        for config, source in zip(configs, sources, strict=True):
            cache.prepare((source[i] for i in range(len(source))), source_slug(config))

    world.on_main(prepare)
    if not world.is_main:
        prepare()
    resolved = [ResolvedDocuments(source, cache, c.noise) for c, source in zip(configs, sources, strict=True)]
    encoder = DocumentEncoder(tokenizers["text"])
    torch.manual_seed(recipe.training.seed)
    model = start.model if start else _new_model(recipe, tokenizers, backbone)
    context = model.config.transformer.context_length
    world.on_main(lambda: check_lengths(recipe.data, resolved, encoder, context))
    identity = fingerprints | _choose_weights(model, recipe)
    loader = DocumentLoader(
        resolved,
        recipe.data,
        encoder,
        {name: spec.latent_dim for name, spec in model.modalities.items()},
        seed=recipe.training.seed,
        num_streams=recipe.training.accumulation,
        rank=world.rank,
        world=world.size,
    )
    held_out: list[Document] = []
    if recipe.training.sample_every:
        kinds = partial(_held_out_kinds, configs, layout)
        world.on_main(lambda: held_out.extend(choose(kinds(), cache, encoder, context)))
    return LatentLMRun(model, tokenizers, loader, resolved, held_out, identity)


def _documents(config: SourceConfig, split: str, layout: str) -> Sequence[Document]:
    return laid_out(documents(config, split), layout, config.name or config.manifest)


def _held_out_kinds(configs: Sequence[SourceConfig], layout: str) -> list[list[Sequence[Document]]]:
    """The held-out documents of sources of plain text, and those of all other sources that have any."""
    kinds: list[list[Sequence[Document]]] = [[], []]
    for config in configs:
        found = _documents(config, "held_out", layout)
        if len(found):
            kinds[config.task != "text"].append(found)
    return kinds


def _new_model(recipe: LatentLMRecipe, tokenizers: dict, backbone: Backbone | None) -> LatentLM:
    text = tokenizers["text"]
    config = recipe.model.resolved(backbone.transformer if backbone else None)
    model = LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers))
    if backbone:
        backbone.fill(model)
    return model


def _choose_weights(model: LatentLM, recipe: LatentLMRecipe) -> dict:
    """Put the adapter in, or freeze what the recipe freezes; what a resumed run must have in common with this one.

    Weights that do not train are not in its checkpoints, so what the model begins with is part of that.
    """
    config, training = model.config.model_dump(mode="json"), recipe.training
    identity: dict = {"model": config}
    if recipe.model.start or training.adapter or training.freeze:
        identity["model.start"] = adapter.start_of(model)
    if training.adapter:
        adapter.insert(model, training.adapter, recipe.model.start or recipe.model.backbone)
        identity["training.adapter"] = training.adapter.model_dump(mode="json")
    if training.freeze:
        adapter.freeze(model, training.freeze)
        identity["training.freeze"] = list(training.freeze)
    return identity


def check_lengths(config: DataConfig, sources: list[ResolvedDocuments], encoder: DocumentEncoder, context: int) -> None:
    """ValueError naming the first source and document that do not fit a row, or `context`, before anything is trained.

    Positions begin anew with each document, so rows may be longer than the model's context, documents not.
    """
    limit, what = min((config.sequence_length, "data.sequence_length"), (context, "the model's context"))
    for source, documents_ in zip(config.sources, sources, strict=True):
        for number in range(len(documents_)):
            length = len(encoder(documents_[number]))
            if length > limit:
                raise ValueError(
                    f"data source {source.name or source.manifest!r} ({source.task}): document {number} has {length} "
                    f"positions, {what} is {limit}"
                )


def build_tokenizers(
    recipe: LatentLMRecipe, sources: list, device: torch.device, backbone: Backbone | None = None
) -> dict:
    """The text tokenizer of the backbone or from the recipe's own text; the others from the folders that it names."""
    texts = (s.text for source in sources for document in source for s in document.segments if isinstance(s, Text))
    found: dict = {}
    for name in tokenizer_names():
        folder = recipe.tokenizers.folder(name)
        if folder is not None:
            found[name] = load_tokenizer(tokenizer_folder(folder, name))
            wanted = second_tokenizers().get(name, name)
            if found[name].modality != wanted:
                raise ValueError(
                    f"tokenizers.{name}: {folder} is a tokenizer of {found[name].modality}, not of {wanted}"
                )
    found |= _tokenizers_from_data(recipe, found)
    names = [name for name in modality_names() if name in found]
    text = backbone.text if backbone else TextTokenizer.train(recipe.tokenizers.text, texts)
    return {"text": text.with_modalities(names)} | {name: tokenizer.to(device) for name, tokenizer in found.items()}


def _tokenizers_from_data(recipe: LatentLMRecipe, known: Collection[str]) -> dict:
    """Those of modalities that occur in the data, have no tokenizer yet, and need no training."""
    made = {}
    for each in modalities():
        holders = [source for source in recipe.data.sources if each.name in modalities_in(source)]
        if each.from_data and each.name not in known and holders:
            made[each.name] = each.from_data(Concatenated([media(source, each.name) for source in holders]))
    return made


def tokenizer_folder(name: str, modality: str) -> Path:
    """A tokenizer's own folder, the run that trained it, or a model that contains one ("tiny")."""
    folder = Path(name)
    for candidate in (folder / "model", folder):
        if (candidate / "model.safetensors").is_file() and not (candidate / "tokenizers").is_dir():
            return candidate
    inside = resolve(name) / "tokenizers" / modality
    if not inside.is_dir():
        raise ValueError(f"tokenizers.{modality}: {name!r} has no {modality} tokenizer")
    return inside


def source_slug(source) -> str:
    """A file name for the latents of one source of a recipe."""
    name = source.name or f"{Path(source.manifest).stem}-{hashlib.sha256(source.manifest.encode()).hexdigest()[:8]}"
    copies = f"warped{source.warped_copies}" if source.warped_copies else None
    return "-".join(str(part) for part in (name, source.task, source.limit, copies) if part is not None)


# ------------------------------------------------------------------- tokenizers


def media_loader(
    config: MediaConfig, tokenizer, *, seed: int, num_streams: int, world: World
) -> tuple[MediaLoader, list[list]]:
    """Batches of prepared media for a tokenizer, and the media themselves by source."""
    sources = [media(source, tokenizer.modality, "train") for source in config.sources]
    prepare = _image_example(tokenizer) if tokenizer.modality == "image" else _speech_example(tokenizer, config)
    loader = MediaLoader(
        sources,
        [source.weight for source in config.sources],
        prepare,
        batch_size=config.batch_size,
        seed=seed,
        num_streams=num_streams,
        rank=world.rank,
        world=world.size,
    )
    return loader, sources


def _image_example(tokenizer):
    size, known = tokenizer.config.image_size, {}

    def prepare(image, rng: np.random.Generator) -> Tensor:
        if id(image) not in known:
            known[id(image)] = (image, image_to_tensor(image, size))
        return known[id(image)][1]

    return prepare


def _speech_example(tokenizer, config: MediaConfig):
    """A random crop of `config.seconds`, a multiple of the hop; shorter clips stay whole. Rate and loudness are those
    of the whole clip."""
    speech: SpeechTokenizerConfig = tokenizer.config
    length, known = max(1, round(config.seconds * speech.sample_rate / speech.hop)) * speech.hop, {}

    def prepare(audio, rng: np.random.Generator) -> Tensor:
        if id(audio) not in known:
            known[id(audio)] = (audio, tokenizer.waveform(audio))
        samples = known[id(audio)][1]
        start = int(rng.integers(0, max(1, len(samples) - length + 1)))
        return samples[None, start : start + length]  # (1, S)

    return prepare
