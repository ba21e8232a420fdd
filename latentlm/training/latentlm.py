"""Kind "latentlm": build the run of a recipe (tokenizers, documents, model), its loader, and export the model.

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

from ..checkpoint import config_folder, modality_specs, resolve, write_config
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
from .feed import fingerprint_sources, fit_rows, latents_folder, open_documents, packed_batches, with_latents
from .folder import check_resumed, check_sources
from .held_out import HeldOut, choose
from .objective import Run
from .protocols import Loader
from .samples import SampleWriter
from .trainer import Trainer


@dataclass(kw_only=True)
class LatentLMRun(Run):
    """The run of a LatentLM recipe.

    documents  training documents by source, with latents for media
    held_out   documents that are scored during training, with latents for media; in the main process only
    """

    model: LatentLM
    tokenizers: dict
    documents: list[ResolvedDocuments]
    held_out: list[Document]


def build_latentlm(recipe: LatentLMRecipe, folder: Path, world: World) -> LatentLMRun:
    """Build the run: tokenizers, then the latents of all media (encoded by the main process, whose files the others
    read), then the model, with the same weights in every process.

    `model.start` gives tokenizers and model; `model.backbone` gives the text tokenizer and the weights of Transformer
    and text head. Documents are laid out as the model's `prompt` says. Raises UserError where the folder holds a run of
    other tokenizers or documents.
    """
    parts = open_parts(recipe, world.device)
    tokenizers, sources, layout = parts.tokenizers, parts.sources, parts.layout
    fingerprints: dict = {"fingerprints": {name: tokenizer.fingerprint() for name, tokenizer in tokenizers.items()}}
    check_resumed(folder, fingerprints)  # before the cached latents of other tokenizers are refused
    fingerprints["data.sources"] = fingerprint_sources(recipe.data.sources, sources)
    check_sources(folder, fingerprints["data.sources"], recipe.data.sources)
    cache = LatentCache(without_text(tokenizers), latents_folder(folder, world), run_folder=folder / "latents")
    resolved = with_latents(recipe.data.sources, sources, cache, folder / "latents", layout, world)
    torch.manual_seed(recipe.training.seed)
    model = parts.start.model if parts.start else _new_model(recipe, tokenizers, parts.backbone)
    if parts.backbone:
        parts.backbone.fill(model)
    encoder = DocumentEncoder(tokenizers["text"], model.config.lowercase)
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


def preview_latentlm(recipe: LatentLMRecipe, world: World) -> LatentLMRun:
    """The same run as `build_latentlm` for --dry-run, without writing anything.

    A medium is encoded only when its document is read. A new model is on torch's meta device: it has no weights. Long
    texts are split in sources without media only; to measure other documents, all their media would be encoded.
    """
    parts = open_parts(recipe, world.device)
    cache = LatentCache(without_text(parts.tokenizers))
    documents = [
        ResolvedDocuments(source, cache, config.noise)
        for config, source in zip(recipe.data.sources, parts.sources, strict=True)
    ]
    with torch.device("meta"):
        model = parts.start.model if parts.start else _new_model(recipe, parts.tokenizers, parts.backbone)
    encoder = DocumentEncoder(parts.tokenizers["text"], model.config.lowercase)
    context = model.config.transformer.context_length
    for number, config in enumerate(recipe.data.sources):
        if not any(holds(config, name) for name in modality_names()):
            data = recipe.data.model_copy(update={"sources": (config,)})
            (documents[number],) = fit_rows(data, [documents[number]], encoder, context, world)
    _choose_trained(model, recipe)
    return LatentLMRun(model=model, tokenizers=parts.tokenizers, documents=documents, held_out=[])


@dataclass(frozen=True)
class RecipeParts:
    """The opened parts of a recipe: the model to start from, the backbone, the tokenizers, the documents by source."""

    start: Pipeline | None
    backbone: Backbone | None
    tokenizers: dict
    sources: list[Sequence[Document]]
    layout: str


def open_parts(recipe: LatentLMRecipe, device: torch.device) -> RecipeParts:
    """Open all that the recipe names. Raises UserError if something is missing, peft included."""
    if recipe.training.adapter:
        adapter.require_peft()
    start = load(recipe.model.start, device=device, dtype=torch.float32) if recipe.model.start else None
    backbone = Backbone.open(recipe.model.backbone) if recipe.model.backbone else None
    layout = (start.model.config if start else recipe.model).prompt
    sources = recipe_documents(recipe, layout)
    tokenizers = start.tokenizers if start else build_tokenizers(recipe, sources, device, backbone)
    return RecipeParts(start, backbone, tokenizers, sources, layout)


def without_text(tokenizers: dict) -> dict:
    """The tokenizers of media."""
    return {name: tokenizer for name, tokenizer in tokenizers.items() if name != "text"}


def recipe_documents(recipe: LatentLMRecipe, layout: str) -> list[Sequence[Document]]:
    """The documents to train on, by source; media are as their source has them."""
    return [open_documents(config, "train", layout) for config in recipe.data.sources]


def document_loader(recipe: LatentLMRecipe, run: LatentLMRun, world: World) -> Loader:
    """The loader of this process: packed batches of the documents of `run`."""
    latent_dims = {name: spec.latent_dim for name, spec in run.model.modalities.items()}
    encoder = DocumentEncoder(run.tokenizers["text"], run.model.config.lowercase)
    return packed_batches(recipe.data, run.documents, encoder, latent_dims, recipe.training, world)


def export_latentlm(recipe: LatentLMRecipe, run: LatentLMRun, trainer: Trainer, folder: Path) -> None:
    """Write config.json and tokenizers/ beside the weights."""
    metadata = {"recipe": recipe.model_dump(mode="json"), "step": trainer.progress.step}
    write_config(folder, run.model, run.tokenizers, metadata)


def write_setup(recipe: LatentLMRecipe, run: LatentLMRun, folder: Path) -> None:
    """Write config.json and tokenizers/, with which `load` reads any step's checkpoint of the run."""
    write_config(folder, run.model, run.tokenizers, {"recipe": recipe.model_dump(mode="json")})


def write_adapted(run: LatentLMRun, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the model with the adapter merged to `path`, and the adapter to adapter/ of the run. Averaged weights are
    written last, so that adapter/ has them."""
    save_weights(path, adapter.merge(run.model, weights))
    adapter.save(run.model, weights, path.parent.parent / "adapter", run.identity["model.start"])


def _sampler(run: LatentLMRun, folder: Path) -> Callable[[nn.Module, int], dict[str, float]]:
    pipeline = Pipeline(run.model, run.tokenizers)
    write, held_out = SampleWriter(pipeline, run.documents, folder), HeldOut(pipeline, run.held_out)
    return lambda model, step: write(model, step) | held_out()


def _held_out_kinds(configs: Sequence[SourceConfig], layout: str) -> list[list[Sequence[Document]]]:
    """Held-out documents by source, of sources of plain text and of all others; sources without any are left out."""
    kinds: list[list[Sequence[Document]]] = [[], []]
    for config in configs:
        found = open_documents(config, "held_out", layout)
        if len(found):
            kinds[config.task != "text"].append(found)
    return kinds


def _new_model(recipe: LatentLMRecipe, tokenizers: dict, backbone: Backbone | None) -> LatentLM:
    text = tokenizers["text"]
    config = recipe.model.resolved(backbone.transformer if backbone else None)
    return LatentLM(config, text.vocab_size, text.special, modality_specs(tokenizers))


def _choose_weights(model: LatentLM, recipe: LatentLMRecipe) -> dict:
    """Insert the adapter or freeze weights as the recipe says; returns this part of the run's identity.

    Weights that do not train are not in the checkpoints, so the identity has the fingerprint of the initial weights.
    """
    config, training = model.config.model_dump(mode="json", exclude={"lowercase"}), recipe.training
    identity: dict = {"model": config}
    if recipe.model.start or training.adapter or training.freeze:
        identity["model.start"] = adapter.start_of(model)
    if training.adapter:
        identity["training.adapter"] = training.adapter.model_dump(mode="json")
    if training.freeze:
        identity["training.freeze"] = list(training.freeze)
    _choose_trained(model, recipe)
    return identity


def _choose_trained(model: LatentLM, recipe: LatentLMRecipe) -> None:
    """Insert the adapter, or freeze weights, as the recipe says."""
    if recipe.training.adapter:
        adapter.insert(model, recipe.training.adapter, recipe.model.start or recipe.model.backbone)
    if recipe.training.freeze:
        adapter.freeze(model, recipe.training.freeze)


def build_tokenizers(
    recipe: LatentLMRecipe, sources: list, device: torch.device, backbone: Backbone | None = None
) -> dict:
    """The tokenizers by name: text from the backbone or trained on the recipe's text, the others from their folders.

    A BPE is trained on all documents in memory and on `data.placed.TEXT_SAMPLE` documents of each source on disk.
    Classes are collected from all documents. Bytes need no training.
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
    """Tokenizers that need no training, for modalities that occur in the data and have no tokenizer in `known`."""
    made = {}
    for each in modalities():
        if each.from_data is None or each.name in known:
            continue
        holders = [source for source in recipe.data.sources if holds(source, each.name)]
        if holders:
            made[each.name] = each.from_data(Concatenated([media(source, each.name) for source in holders]))
    return made


def _text_tokenizer(config: TextTokenizerConfig, sources: list[Sequence[Document]]) -> TextTokenizer:
    everything = config.kind == "classes"  # every distinct text gets an entry
    most = [len(source) if everything else TEXT_SAMPLE for source in sources]
    texts = [] if config.kind == "bytes" else [texts_of(s, num) for s, num in zip(sources, most, strict=True)]
    return TextTokenizer.train(config, chain.from_iterable(texts))


def tokenizer_folder(name: str, modality: str) -> Path:
    """The folder of a tokenizer: `name` may be that folder, the run that trained it, or a model that contains it."""
    folder = Path(name)
    for candidate in (folder / "model", folder):
        if (candidate / "model.safetensors").is_file() and not (candidate / "tokenizers").is_dir():
            return candidate
    inside = config_folder(resolve(name)) / "tokenizers" / modality
    if not inside.is_dir():
        raise UserError(f"tokenizers.{modality}: {name!r} has no {modality} tokenizer")
    return inside
