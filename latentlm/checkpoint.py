"""The folder of a model: config, weights and tokenizers, self-contained and without pickle.

Place in the flow: beside the model; training writes such folders, `latentlm.load` (generation/pipeline.py) reads them.
    config.json   model.safetensors   ema.safetensors (optional)   tokenizers/{text,image,speech,…}/
A run that has not ended has no such folder yet: its latest checkpoint is read instead (`run_folder.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from .config import FORMAT_VERSION, ModelConfig, describe, read_json
from .config.base import did_you_mean
from .config.kinds import TrainSpec, spec_of_folder
from .config.modalities import modality, modality_names, tokenizer_names
from .errors import UserError, notice
from .hub import from_hub, is_hub_id
from .model.adapter import merge_into, start_of
from .model.latentlm import LatentLM, ModalitySpec
from .run_folder import CHECKPOINTS, MODEL, SETUP, complete_steps, is_step, read_state, state_shapes, step_of
from .tokenizers.load import load_tokenizer
from .tokenizers.text import TextTokenizer, read_config
from .weights import load_weights, save_weights, shape_mismatches, write_text

PACKAGED = resources.files("latentlm") / "pretrained"


def resolve(name: str | Path) -> Path:
    """The local folder of a model: `name` is a packaged model, a path, or a hub id (then downloaded).

    A packaged name is preferred to a folder of that name in the working directory, with a Notice; "./tiny" or a Path
    means the folder. For a run's folder the result is the exported model, or the latest checkpoint if the run has
    continued since. Raises UserError if there is no model, and for an empty name.
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
        return newest(folder)
    if not is_hub_id(name):
        known = ", ".join(packaged) or "none"
        hint = f" (packaged: {known})" if "mean" not in (said := did_you_mean(str(name), packaged)) else said
        raise UserError(f"no model {str(name)!r}: not a folder, nor packaged{hint}")
    return from_hub(str(name))


def packaged_models() -> dict[str, Path]:
    """The folders of the models that come with the package, by name."""
    found = sorted(PACKAGED.iterdir(), key=lambda entry: entry.name) if PACKAGED.is_dir() else []
    return {entry.name: Path(str(entry)) for entry in found if entry.is_dir()}


def newest(folder: Path) -> Path:
    """The newest model in `folder`: itself, a run's exported model, or its latest checkpoint if the run has continued.

    Raises UserError if there is no model, or only checkpoints of a run that cannot be loaded.
    """
    if (folder / "config.json").is_file() or is_step(folder):
        config_folder(folder)
        return folder
    steps = complete_steps(folder / CHECKPOINTS)
    exported, has_setup = folder / MODEL, (folder / SETUP / "config.json").is_file()
    if (exported / "config.json").is_file():
        done = read_config(exported / "config.json").get("metadata", {}).get("step", -1)
        if steps and has_setup and step_of(steps[-1]) > done:
            return steps[-1]
        _say_if_older(exported, steps)
        return exported
    if steps:
        config_folder(steps[-1])
        return steps[-1]
    if has_setup:
        raise UserError(f"{folder}: a run without a checkpoint yet; it writes one every training.save_every steps")
    raise UserError(f"{folder}: not a checkpoint directory, it has no config.json")


def _say_if_older(exported: Path, steps: Sequence[Path]) -> None:
    """Give a notice if a run without `setup/`, as a tokenizer's, has continued since it wrote `exported`."""
    if not steps:
        return
    state = steps[-1] / "trainer.json"
    if state.is_file() and state.stat().st_mtime > (exported / "config.json").stat().st_mtime:
        run, step = exported.parent, step_of(steps[-1])
        notice(f"{run}: loaded {MODEL}/ as it was exported; the run has continued to step {step} and has not ended yet")


def config_folder(folder: Path) -> Path:
    """The folder with config.json and tokenizers/ for a `folder` from `resolve`: itself, or its run's setup/ or model/.

    Raises UserError for a step of a run that has neither setup/ nor model/.
    """
    if not is_step(folder):
        return folder
    run = folder.absolute().parent.parent
    for name in (SETUP, MODEL):
        if (run / name / "config.json").is_file():
            return run / name
    raise UserError(
        f"{folder}: cannot be loaded, because its run has no {SETUP}/ (it trains a tokenizer, or is of an older "
        f"release); the run writes {run / MODEL} when it ends"
    )


def kind_of(folder: Path) -> TrainSpec:
    """The kind of model or tokenizer in `folder`, from its config.json. Raises UserError for an unknown kind."""
    path = config_folder(folder) / "config.json"
    return spec_of_folder(read_config(path).get("kind"), str(path))


def load_tokenizers(folder: Path) -> dict:
    """All tokenizers in `folder` (text/, image/, …) by modality."""
    tokenizers: dict = {"text": TextTokenizer.load(folder / "text")}
    for name in tokenizer_names():
        if (folder / name).is_dir():
            tokenizers[name] = load_tokenizer(folder / name)
    return tokenizers


def modality_specs(tokenizers: dict) -> dict[str, ModalitySpec]:
    """The `ModalitySpec` of each modality that has a tokenizer in `tokenizers`."""
    specs = {}
    for name in modality_names():
        if name in tokenizers:
            second = tokenizers.get(modality(name).second)
            feature_dim = None if second is None else second.latent_dim
            specs[name] = ModalitySpec(tokenizers[name].latent_dim, tokenizers[name].num_latents, feature_dim)
    return specs


def build_from_config(folder: Path, text: TextTokenizer) -> LatentLM:
    """A new model as config.json describes it, without its weights. Raises UserError that names the wrong key."""
    path = config_folder(folder) / "config.json"
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
    """Load the weights in `folder`, of a model or a checkpoint of a run, into `model`.

    weights: "ema", the averaged ones (the raw ones where there is no average), or "raw".
    """
    if is_step(folder):
        fill_from_step(model, folder, weights)
        return
    averaged = folder / "ema.safetensors"
    load_weights(averaged if weights == "ema" and averaged.is_file() else folder / "model.safetensors", model)


def fill_from_step(model: LatentLM, step: Path, weights: str) -> None:
    """Load a run's checkpoint `step` into `model`; a notice names the step.

    Frozen weights are not in the checkpoint: they are read from the model that the run started from. An adapter is
    merged. Raises UserError if the checkpoint is damaged, of another model, or of a frozen backbone.
    """
    shapes = state_shapes(step)
    prefix = "ema." if weights == "ema" and any(name.startswith("ema.") for name in shapes) else "model."
    names = {name.partition(".")[2] for name in shapes if name.startswith(("model.", "ema."))}
    stored = {name: f"{prefix}{name}" if f"{prefix}{name}" in shapes else f"model.{name}" for name in names}
    tensors = {name: torch.empty(shapes[key]) for name, key in stored.items()}
    identity = read_json(step / "trainer.json").get("identity", {})
    own = model.state_dict(keep_vars=True)
    trained = {id(own[name]) for name in names if name in own}
    if any(id(value) not in trained for value in own.values()):
        _fill_start(model, step, identity)
    expected = {name: tuple(own[name].shape) for name in names & own.keys()}
    adapters = {name for name in names if ".lora_" in name}
    if problems := shape_mismatches({name: shapes[stored[name]] for name in names - adapters}, expected):
        raise UserError(f"{step}: weights do not fit this model; {problems}")
    read_state(step, {stored[name]: value for name, value in tensors.items()})
    with torch.no_grad():
        for name in expected:
            own[name].copy_(tensors[name])
    if adapters:
        settings = identity["training.adapter"]
        merge_into(model, {name: tensors[name] for name in adapters}, settings["alpha"] / settings["rank"])
    notice(f"{step.absolute().parent.parent}: loaded step {step_of(step)}, the checkpoint {step.name} of the run")


def _fill_start(model: LatentLM, step: Path, identity: dict) -> None:
    """Load the weights that a run started from. Raises UserError if it started from no model, or that has changed."""
    name = read_metadata(step).get("recipe", {}).get("model", {}).get("start")
    if name is None:
        raise UserError(f"{step}: holds only the trained weights; load the run after it has ended and written {MODEL}/")
    fill(model, resolve(name), "ema")
    if start_of(model) != identity.get("model.start"):
        raise UserError(f"{step}: the run began with {name}, whose weights have changed since")


def check_tokenizers(folder: Path, model: LatentLM, tokenizers: dict) -> None:
    """Raise UserError for a tokenizer that the model needs and that is missing or has latents of another shape."""
    found = modality_specs(tokenizers)
    for name, wanted in model.modalities.items():
        path = config_folder(folder) / "tokenizers" / name
        if name not in found:
            raise UserError(f"{path}: no such tokenizer, and the model has {name}")
        for key in ("latent_dim", "num_latents"):
            theirs, ours = getattr(found[name], key), getattr(wanted, key)
            if theirs != ours:
                raise UserError(f"{path}: {key} is {theirs}, the model's is {ours}")


def write_config(folder: Path, model: LatentLM, tokenizers: dict, metadata: dict | None = None) -> None:
    """Write config.json and tokenizers/ into `folder`; the caller writes the weights.

    metadata: JSON values about how the model was made (recipe, steps).
    """
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
    """The metadata (recipe, steps) in config.json of a model; `folder` is a name as in `resolve`."""
    return read_config(config_folder(resolve(folder)) / "config.json").get("metadata", {})


def shrink(source: str | Path, target: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Copy a model to the folder `target` with its averaged weights alone, in `dtype`: half the size in bfloat16.

    Packaged models are made this way: recipes/tiny.yaml has the command. Raises UserError as `latentlm.load`.
    """
    folder, target = resolve(source), Path(target)
    tokenizers = load_tokenizers(config_folder(folder) / "tokenizers")
    model = build_from_config(folder, tokenizers["text"])
    fill(model, folder, "ema")
    write_config(target, model, tokenizers, read_metadata(source))
    save_weights(target / "model.safetensors", model.state_dict(), dtype)
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, torch.nn.Module):
            save_weights(target / "tokenizers" / name / "model.safetensors", tokenizer.state_dict(), dtype)
