"""Checkpoint directories: a model with its tokenizers, complete in one folder, without pickle.

Place in the flow: 4, what training exports and `latentlm.load` reads.
    config.json   model.safetensors   ema.safetensors (optional)   tokenizers/{text,image,speech}/
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from pydantic import ValidationError

from ..config import FORMAT_VERSION, ModelConfig, describe
from ..model.latentlm import LatentLM, ModalitySpec
from ..tokenizers.load import load_tokenizer
from ..tokenizers.text import TextTokenizer, read_config
from ..weights import load_weights
from .generate import Pipeline

PACKAGED = resources.files("latentlm") / "pretrained"


def load(
    name: str | Path, *, weights: str = "ema", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Pipeline:
    """The model in a checkpoint directory, a packaged one by name ("tiny"), or a hub id ("owner/name").

    weights: "ema" (the average, or the raw weights where a checkpoint has none) or "raw". Raises ValueError, one line,
    naming what is missing or does not fit.
    """
    folder = resolve(name)
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    tokenizers = load_tokenizers(folder / "tokenizers")
    model = build_from_config(folder, tokenizers["text"])
    averaged = folder / "ema.safetensors"
    load_weights(averaged if weights == "ema" and averaged.is_file() else folder / "model.safetensors", model)
    for tokenizer in tokenizers.values():
        if isinstance(tokenizer, torch.nn.Module):
            tokenizer.to(device)
    return Pipeline(model.to(device, dtype), tokenizers)


def resolve(name: str | Path) -> Path:
    """The local folder of a checkpoint: a path, a packaged name, or a hub id (fetched by huggingface_hub)."""
    folder = Path(name)
    if folder.is_dir():
        return latest_export(folder)
    packaged = Path(str(PACKAGED / str(name)))
    if "/" not in str(name) and packaged.is_dir():
        return packaged
    if str(name).count("/") != 1 or str(name).startswith((".", "/")) or folder.parent.is_dir():
        known = sorted(entry.name for entry in PACKAGED.iterdir()) if PACKAGED.is_dir() else []
        raise ValueError(f"no model {str(name)!r}: not a folder, nor packaged (packaged: {', '.join(known) or 'none'})")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: neither a folder here nor reachable on the hub ({reason}); "
            "download its files elsewhere and pass their folder"
        ) from None


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
    for name in ("image", "speech"):
        if (folder / name).is_dir():
            tokenizers[name] = load_tokenizer(folder / name)
    return tokenizers


def modality_specs(tokenizers: dict) -> dict[str, ModalitySpec]:
    """What the model has to know about its continuous tokenizers."""
    specs = {}
    if "image" in tokenizers:
        specs["image"] = ModalitySpec(tokenizers["image"].latent_dim, tokenizers["image"].num_latents)
    if "speech" in tokenizers:
        specs["speech"] = ModalitySpec(tokenizers["speech"].latent_dim, None)
    return specs


def build_from_config(folder: Path, text: TextTokenizer) -> LatentLM:
    """An unfilled model as config.json describes it."""
    path = folder / "config.json"
    fields = read_config(path)
    try:
        config = ModelConfig.model_validate(fields["model"])
        specs = {name: ModalitySpec(**spec) for name, spec in fields["modalities"].items()}
    except ValidationError as error:
        raise ValueError(f"{path}: model.{describe(error, ModelConfig)}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a LatentLM config ({error})") from None
    if fields.get("vocab_size") != text.vocab_size:
        raise ValueError(f"{path}: vocab_size {fields.get('vocab_size')} but the text tokenizer has {text.vocab_size}")
    return LatentLM(config, text.vocab_size, text.special, specs)


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
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    for name, tokenizer in tokenizers.items():
        tokenizer.save(folder / "tokenizers" / name)


def read_metadata(folder: str | Path) -> dict:
    """What training wrote about a checkpoint: recipe, steps, data."""
    return read_config(resolve(folder) / "config.json").get("metadata", {})
