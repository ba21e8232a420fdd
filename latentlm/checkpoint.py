"""The folder of a model: config, weights and tokenizers, complete in one place, without pickle.

Place in the flow: beside the model; training writes what is here, `latentlm.load` (generation/pipeline.py) reads it.
    config.json   model.safetensors   ema.safetensors (optional)   tokenizers/{text,image,speech,…}/
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from .config import FORMAT_VERSION, ModelConfig, describe
from .config.kinds import TrainSpec, spec_of_folder
from .config.modalities import modality, modality_names, tokenizer_names
from .errors import UserError, notice
from .hub import from_hub, is_hub_id
from .model.latentlm import LatentLM, ModalitySpec
from .tokenizers.load import load_tokenizer
from .tokenizers.text import TextTokenizer, read_config
from .weights import load_weights, save_weights, write_text

PACKAGED = resources.files("latentlm") / "pretrained"


def resolve(name: str | Path) -> Path:
    """The local folder of a checkpoint: a packaged name, a path, or a hub id (fetched by huggingface_hub).

    A packaged name wins over a folder of that name in the working directory, with a Notice; "./tiny" or a Path is the
    folder. Raises UserError if there is no such model, and for an empty name.
    """
    if not str(name).strip():
        raise UserError("the name of the model is empty")
    folder = Path(name)
    packaged = packaged_models()
    if str(name) in packaged and (isinstance(name, str) or not folder.is_dir()):
        if folder.is_dir():
            notice(f"{name!r} is the packaged model; write ./{name} for the folder {name} that is here")
        return packaged[str(name)]
    if folder.is_dir():
        return latest_export(folder)
    if not is_hub_id(name):
        known = ", ".join(packaged) or "none"
        raise UserError(f"no model {str(name)!r}: not a folder, nor packaged (packaged: {known})")
    return from_hub(str(name))


def packaged_models() -> dict[str, Path]:
    """The folders of the models that come with the package, by name."""
    found = sorted(PACKAGED.iterdir(), key=lambda entry: entry.name) if PACKAGED.is_dir() else []
    return {entry.name: Path(str(entry)) for entry in found if entry.is_dir()}


def latest_export(folder: Path) -> Path:
    """`folder` itself, or the exported model inside a run's folder."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    raise UserError(f"{folder}: not a checkpoint directory, it has no config.json")


def kind_of(folder: Path) -> TrainSpec:
    """The kind of what `folder` holds, by its config.json. UserError for a config.json of no kind that there is."""
    path = folder / "config.json"
    return spec_of_folder(read_config(path).get("kind"), str(path))


def load_tokenizers(folder: Path) -> dict:
    """All tokenizers under `folder`, by modality."""
    tokenizers: dict = {"text": TextTokenizer.load(folder / "text")}
    for name in tokenizer_names():
        if (folder / name).is_dir():
            tokenizers[name] = load_tokenizer(folder / name)
    return tokenizers


def modality_specs(tokenizers: dict) -> dict[str, ModalitySpec]:
    """What the model has to know about its continuous tokenizers."""
    specs = {}
    for name in modality_names():
        if name in tokenizers:
            second = tokenizers.get(modality(name).second)
            feature_dim = None if second is None else second.latent_dim
            specs[name] = ModalitySpec(tokenizers[name].latent_dim, tokenizers[name].num_latents, feature_dim)
    return specs


def build_from_config(folder: Path, text: TextTokenizer) -> LatentLM:
    """An unfilled model as config.json describes it."""
    path = folder / "config.json"
    fields = read_config(path)
    for key in ("model", "modalities"):
        if key not in fields:
            raise UserError(f"{path}: not a LatentLM config ({key!r} is missing)")
    try:
        config = ModelConfig.model_validate(fields["model"])
    except ValidationError as error:
        raise UserError(f"{path}: model.{describe(error, ModelConfig)}") from None
    try:
        specs = TypeAdapter(dict[str, ModalitySpec]).validate_python(fields["modalities"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: {'.'.join(map(str, ('modalities', *first['loc'])))}: {first['msg']}") from None
    if fields.get("vocab_size") != text.vocab_size:
        raise UserError(f"{path}: vocab_size {fields.get('vocab_size')} but the text tokenizer has {text.vocab_size}")
    for name in specs:
        if name not in text.special.bod:
            raise UserError(f"{path}: modalities.{name}: the text tokenizer has no token 'bod:{name}'")
    try:
        return LatentLM(config, text.vocab_size, text.special, specs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def fill(model: LatentLM, folder: Path, weights: str) -> None:
    """Read the weights of a model: "ema", the average or, where the folder has none, the raw ones; or "raw"."""
    averaged = folder / "ema.safetensors"
    load_weights(averaged if weights == "ema" and averaged.is_file() else folder / "model.safetensors", model)


def check_tokenizers(folder: Path, model: LatentLM, tokenizers: dict) -> None:
    """UserError for a tokenizer that the model needs and is not there, or whose latents are not the model's."""
    found = modality_specs(tokenizers)
    for name, wanted in model.modalities.items():
        path = folder / "tokenizers" / name
        if name not in found:
            raise UserError(f"{path}: no such tokenizer, and the model has {name}")
        for key in ("latent_dim", "num_latents"):
            theirs, ours = getattr(found[name], key), getattr(wanted, key)
            if theirs != ours:
                raise UserError(f"{path}: {key} is {theirs}, the model's is {ours}")


def write_config(folder: Path, model: LatentLM, tokenizers: dict, metadata: dict | None = None) -> None:
    """config.json and tokenizers/ beside the weights, which the caller writes."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "format_version": FORMAT_VERSION,
        "kind": "latentlm",
        "vocab_size": tokenizers["text"].vocab_size,
        "modalities": {name: spec.__dict__ for name, spec in model.modalities.items()},
        "model": model.config.model_dump(mode="json"),
        "metadata": metadata or {},
    }
    write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
    for name, tokenizer in tokenizers.items():
        tokenizer.save(folder / "tokenizers" / name)


def read_metadata(folder: str | Path) -> dict:
    """What training wrote about a checkpoint: recipe, steps, data."""
    return read_config(resolve(folder) / "config.json").get("metadata", {})


def shrink(source: str | Path, target: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Copy a model's folder with the averaged weights alone, in `dtype`: half the size, for a package or a download.

    It makes what is packaged: recipes/tiny.yaml has the command. `latentlm.load` computes in the dtype it is asked for.
    Raises UserError as `latentlm.load`.
    """
    folder, target = resolve(source), Path(target)
    tokenizers = load_tokenizers(folder / "tokenizers")
    model = build_from_config(folder, tokenizers["text"])
    fill(model, folder, "ema")
    write_config(target, model, tokenizers, read_metadata(source))
    save_weights(target / "model.safetensors", model.state_dict(), dtype)
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, torch.nn.Module):
            save_weights(target / "tokenizers" / name / "model.safetensors", tokenizer.state_dict(), dtype)
