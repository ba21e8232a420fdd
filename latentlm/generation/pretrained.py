"""Checkpoint directories: a model with its tokenizers, complete in one folder, without pickle.

Place in the flow: 4, what training exports and `latentlm.load` reads.
    config.json   model.safetensors   ema.safetensors (optional)   tokenizers/{text,image,speech,semantic}/
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from ..config import FORMAT_VERSION, ModelConfig, describe
from ..hardware import choose_device
from ..hub import from_hub, is_hub_id
from ..model.adapter import apply as apply_adapter
from ..model.latentlm import LatentLM, ModalitySpec
from ..tokenizers.load import is_tokenizer, load_tokenizer
from ..tokenizers.text import TextTokenizer, read_config
from ..types import FEATURES, MODALITIES
from ..weights import load_weights, write_text
from .generate import Pipeline

PACKAGED = resources.files("latentlm") / "pretrained"


def load(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """The model in a checkpoint directory, a packaged one by name ("tiny"), or a hub id ("owner/name").

    weights: "ema" (the average, or the raw weights where a checkpoint has none) or "raw". adapter: folder of a LoRA
    adapter (or the run that trained it), which is merged into the "ema" weights, those that it was trained on.
    device: "auto" is CUDA where torch sees it. dtype: of the model; the tokenizers stay as they are.
    Raises ValueError, one line, naming what is missing or does not fit.
    """
    device = choose_device(device)
    folder = resolve(name)
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    if adapter is not None and weights == "raw":
        raise ValueError("weights 'raw' with an adapter: it was trained on the averaged weights; leave weights out")
    if is_tokenizer(folder):
        raise ValueError(
            f"{folder}: a tokenizer, not a model: a recipe names it in its section tokenizers, latentlm evaluate "
            "measures it, and latentlm.tokenizers.load_tokenizer loads it"
        )
    tokenizers = load_tokenizers(folder / "tokenizers")
    model = build_from_config(folder, tokenizers["text"])
    check_tokenizers(folder, model, tokenizers)
    averaged = folder / "ema.safetensors"
    load_weights(averaged if weights == "ema" and averaged.is_file() else folder / "model.safetensors", model)
    if adapter is not None:
        apply_adapter(model, adapter)
    for tokenizer in tokenizers.values():
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer.to(device)
    return Pipeline(model.to(device, dtype), tokenizers)


def resolve(name: str | Path) -> Path:
    """The local folder of a checkpoint: a path, a packaged name, or a hub id (fetched by huggingface_hub).

    Raises ValueError where there is none, and for an empty name, which as a path would be the working directory.
    """
    if not str(name).strip():
        raise ValueError("the name of the model is empty")
    folder = Path(name)
    if folder.is_dir():
        return latest_export(folder)
    packaged = Path(str(PACKAGED / str(name)))
    if "/" not in str(name) and packaged.is_dir():
        return packaged
    if not is_hub_id(name):
        known = sorted(entry.name for entry in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
        raise ValueError(f"no model {str(name)!r}: not a folder, nor packaged (packaged: {', '.join(known) or 'none'})")
    return from_hub(str(name))


def latest_export(folder: Path) -> Path:
    """`folder` itself, or the exported model inside a run's folder."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    raise ValueError(f"{folder}: not a checkpoint directory, it has no config.json")


def load_tokenizers(folder: Path) -> dict:
    """All tokenizers under `folder`, by modality."""
    tokenizers: dict = {"text": TextTokenizer.load(folder / "text")}
    for name in (*MODALITIES, *FEATURES.values()):
        if (folder / name).is_dir():
            tokenizers[name] = load_tokenizer(folder / name)
    return tokenizers


def modality_specs(tokenizers: dict) -> dict[str, ModalitySpec]:
    """What the model has to know about its continuous tokenizers."""
    specs = {}
    if "image" in tokenizers:
        specs["image"] = ModalitySpec(tokenizers["image"].latent_dim, tokenizers["image"].num_latents)
    if "speech" in tokenizers:
        feature_dim = tokenizers["semantic"].latent_dim if "semantic" in tokenizers else None
        specs["speech"] = ModalitySpec(tokenizers["speech"].latent_dim, None, feature_dim)
    return specs


def build_from_config(folder: Path, text: TextTokenizer) -> LatentLM:
    """An unfilled model as config.json describes it."""
    path = folder / "config.json"
    fields = read_config(path)
    for key in ("model", "modalities"):
        if key not in fields:
            raise ValueError(f"{path}: not a LatentLM config ({key!r} is missing)")
    try:
        config = ModelConfig.model_validate(fields["model"])
    except ValidationError as error:
        raise ValueError(f"{path}: model.{describe(error, ModelConfig)}") from None
    try:
        specs = TypeAdapter(dict[str, ModalitySpec]).validate_python(fields["modalities"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, ('modalities', *first['loc'])))}: {first['msg']}") from None
    if fields.get("vocab_size") != text.vocab_size:
        raise ValueError(f"{path}: vocab_size {fields.get('vocab_size')} but the text tokenizer has {text.vocab_size}")
    try:
        return LatentLM(config, text.vocab_size, text.special, specs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tokenizers(folder: Path, model: LatentLM, tokenizers: dict) -> None:
    """ValueError for a tokenizer that the model needs and is not there, or whose latents are not the model's."""
    found = modality_specs(tokenizers)
    for name, wanted in model.modalities.items():
        path = folder / "tokenizers" / name
        if name not in found:
            raise ValueError(f"{path}: no such tokenizer, and the model has {name}")
        for key in ("latent_dim", "num_latents"):
            theirs, ours = getattr(found[name], key), getattr(wanted, key)
            if theirs != ours:
                raise ValueError(f"{path}: {key} is {theirs}, the model's is {ours}")


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
