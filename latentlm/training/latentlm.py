"""Kind "latentlm": a recipe ──▶ tokenizers, documents, model; the loader of their packed batches; what is exported.

Place in the flow: 5, looked up by `run.py` through the registry of kinds, in every process with equal results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import modality_specs, resolve, write_config
from ..config import LatentLMRecipe, SourceConfig, TextTokenizerConfig
from ..config.modalities import modalities, modality_names, second_tokenizers, tokenizer_names
from ..data.cache import LatentCache, ResolvedDocuments
from ..data.packing import DocumentEncoder
from ..data.placed import TEXT_SAMPLE, texts_of
from ..data.sources import holds, media
from ..data.task_source import Concatenated
from ..errors import UserError
from ..generation.pipeline import Pipeline, load
from ..interop.hf_llm import Backbone
from ..model import adapter
from ..model.latentlm import LatentLM
from ..tokenizers.load import load_tokenizer
from ..tokenizers.text import TextTokenizer
from ..types import Document
from ..weights import save_weights
from .distributed import World
from .feed import fit_rows, latents_folder, open_documents, packed_batches, with_latents
from .folder import check_resumed
from .held_out import HeldOut, choose
from .objective import Run
from .protocols import Loader
from .samples import SampleWriter
from .trainer import Trainer


@dataclass(kw_only=True)
class LatentLMRun(Run):
    """What training a language model needs, built from its recipe.

    documents  by source, media as latents
    held_out   to score while it trains, media as latents; in the main process alone
    """

    model: LatentLM
    tokenizers: dict
    documents: list[ResolvedDocuments]
    held_out: list[Document]


def build_latentlm(recipe: LatentLMRecipe, folder: Path, world: World) -> LatentLMRun:
    """Tokenizers first, then every medium encoded once (main process; the others read its file), then the model.

    With `model.start` both come from there; a backbone fills the transformer and the text side of the model, and brings
    the text tokenizer. A model that is asked by scripts learns from documents that are laid out alike. What the model
    begins with is the same in every process.
    """
    start = load(recipe.model.start, device=world.device) if recipe.model.start else None
    backbone = Backbone.open(recipe.model.backbone) if recipe.model.backbone else None
    layout = (start.model.config if start else recipe.model).prompt
    sources = recipe_documents(recipe, layout)
    tokenizers = start.tokenizers if start else build_tokenizers(recipe, sources, world.device, backbone)
    fingerprints = {"fingerprints": {name: tokenizer.fingerprint() for name, tokenizer in tokenizers.items()}}
    check_resumed(folder, fingerprints)  # or the latents of a run that goes on would be found to be another tokenizer's
    continuous = {name: tokenizer for name, tokenizer in tokenizers.items() if name != "text"}
    cache = LatentCache(continuous, latents_folder(folder, world), run_folder=folder / "latents")
    resolved = with_latents(recipe.data.sources, sources, cache, folder / "latents", layout, world)
    encoder = DocumentEncoder(tokenizers["text"])
    torch.manual_seed(recipe.training.seed)
    model = start.model if start else _new_model(recipe, tokenizers, backbone)
    context = model.config.transformer.context_length
    resolved = fit_rows(recipe.data, resolved, encoder, context, world)
    identity = fingerprints | _choose_weights(model, recipe)
    held_out: list[Document] = []
    if recipe.training.sample_every:
        kinds = partial(_held_out_kinds, recipe.data.sources, layout)
        world.on_main(lambda: held_out.extend(choose(kinds(), cache, encoder, context)))
    run = LatentLMRun(model=model, tokenizers=tokenizers, documents=resolved, held_out=held_out, identity=identity)
    if recipe.training.adapter:
        run.write = partial(write_adapted, run)
    run.on_sample = _sampler(run, folder / "samples")
    return run


def recipe_documents(recipe: LatentLMRecipe, layout: str) -> list[Sequence[Document]]:
    """The documents to learn from, by source; media are as their source has them."""
    return [open_documents(config, "train", layout) for config in recipe.data.sources]


def document_loader(recipe: LatentLMRecipe, run: LatentLMRun, world: World) -> Loader:
    """Packed batches of the documents of `run`: this process's lanes of them."""
    latent_dims = {name: spec.latent_dim for name, spec in run.model.modalities.items()}
    encoder = DocumentEncoder(run.tokenizers["text"])
    return packed_batches(recipe.data, run.documents, encoder, latent_dims, recipe.training, world)


def export_latentlm(recipe: LatentLMRecipe, run: LatentLMRun, trainer: Trainer, folder: Path) -> None:
    """config.json and tokenizers/ beside the weights."""
    write_config(folder, run.model, run.tokenizers, {"recipe": recipe.model_dump(mode="json")})


def write_adapted(run: LatentLMRun, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Beside the model with the adapter merged the adapter alone; the averaged weights come last and stay."""
    save_weights(path, adapter.merge(run.model, weights))
    adapter.save(run.model, weights, path.parent.parent / "adapter", run.identity["model.start"])


def _sampler(run: LatentLMRun, folder: Path) -> Callable[[nn.Module, int], dict[str, float]]:
    pipeline = Pipeline(run.model, run.tokenizers)
    write, held_out = SampleWriter(pipeline, run.documents, folder), HeldOut(pipeline, run.held_out)
    return lambda model, step: write(model, step) | held_out()


def _held_out_kinds(configs: Sequence[SourceConfig], layout: str) -> list[list[Sequence[Document]]]:
    """The held-out documents of sources of plain text, and those of all other sources that have any."""
    kinds: list[list[Sequence[Document]]] = [[], []]
    for config in configs:
        found = open_documents(config, "held_out", layout)
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


def build_tokenizers(
    recipe: LatentLMRecipe, sources: list, device: torch.device, backbone: Backbone | None = None
) -> dict:
    """The text tokenizer of the backbone or from the recipe's own text; the others from the folders that it names.

    Of a source on disk a sample of the documents is read for it (`data.placed.TEXT_SAMPLE`), of classes all, and none
    for bytes.
    """
    found: dict = {}
    for name in tokenizer_names():
        folder = recipe.tokenizers.folder(name)
        if folder is not None:
            found[name] = load_tokenizer(tokenizer_folder(folder, name))
            wanted = second_tokenizers().get(name, name)
            if found[name].modality != wanted:
                raise UserError(
                    f"tokenizers.{name}: {folder} is a tokenizer of {found[name].modality}, not of {wanted}"
                )
    found |= _tokenizers_from_data(recipe, found)
    names = [name for name in modality_names() if name in found]
    text = backbone.text if backbone else _text_tokenizer(recipe.tokenizers.text, sources)
    return {"text": text.with_modalities(names)} | {name: tokenizer.to(device) for name, tokenizer in found.items()}


def _tokenizers_from_data(recipe: LatentLMRecipe, known: Collection[str]) -> dict:
    """Those of modalities that occur in the data, have no tokenizer yet, and need no training."""
    made = {}
    for each in modalities():
        if each.from_data is None or each.name in known:
            continue
        holders = [source for source in recipe.data.sources if holds(source, each.name)]
        if holders:
            made[each.name] = each.from_data(Concatenated([media(source, each.name) for source in holders]))
    return made


def _text_tokenizer(config: TextTokenizerConfig, sources: list[Sequence[Document]]) -> TextTokenizer:
    everything = config.kind == "classes"  # each text is an entry of its own, none may be missing
    most = [len(source) if everything else TEXT_SAMPLE for source in sources]
    texts = [] if config.kind == "bytes" else [texts_of(s, num) for s, num in zip(sources, most, strict=True)]
    return TextTokenizer.train(config, chain.from_iterable(texts))


def tokenizer_folder(name: str, modality: str) -> Path:
    """A tokenizer's own folder, the run that trained it, or a model that contains one ("tiny")."""
    folder = Path(name)
    for candidate in (folder / "model", folder):
        if (candidate / "model.safetensors").is_file() and not (candidate / "tokenizers").is_dir():
            return candidate
    inside = resolve(name) / "tokenizers" / modality
    if not inside.is_dir():
        raise UserError(f"tokenizers.{modality}: {name!r} has no {modality} tokenizer")
    return inside
