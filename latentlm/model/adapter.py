"""Low-rank adapters (LoRA): inserted for training, saved in peft's format, merged into the weights.

Place in the flow: 3, beside the model: training inserts and saves one, `latentlm.load(base, adapter=…)` merges it.
    in training   y = W x + s · B (A x),  s = alpha / rank;  W is frozen, B starts at zero     (the layers are peft's)
    merged        W + s · B A: a plain model again, as fast as before
    saved         adapter_config.json, adapter_model.safetensors: `peft.PeftModel.from_pretrained` reads them too
Modules that are trained in full beside the adapter are saved with it (peft's `modules_to_save`). Reading and merging do
not need peft.
Legend: `D` outputs and `E` inputs of a layer, `R` rank.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import UserError
from ..weights import check_floats, fingerprint, read_note, read_weights, save_weights, shape_mismatches, write_text
from .latentlm import LatentLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Prefix of every name in an adapter's file, from peft's wrapper around the model."""

INTERFACE = ("heads", "embed_latents", "embed_features")
"""Parts that are trained in full unless the recipe says otherwise: they are small, and random at the start of a run
that begins with a trained backbone."""

CHANGES_THE_SUM = ("use_rslora", "use_dora", "use_qalora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
"""peft's options under which the merged weight is not W + s · B A."""


def named(patterns: Iterable[str], names: Iterable[str], key: str) -> set[str]:
    """The dotted `names` in which one of `patterns` occurs between dots; `*` in a pattern stands for anything.

    Raises UserError, naming `key`, for a pattern that occurs in none of them.
    """
    names, found = list(names), set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")}
        if not matched:
            parts = dict.fromkeys(name.split(".")[0] for name in names)
            raise UserError(f"{key}: {pattern!r} names nothing in this model, which has {', '.join(parts)}")
        found |= matched
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the weights that `patterns` name. Raises UserError as `named` does."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name in named(patterns, weights, "training.freeze"):
        weights[name].requires_grad_(False)


def require_peft() -> None:
    """Raise UserError, with the command that installs it, if peft is missing."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("training.adapter needs peft, which is not installed: pip install peft")


def insert(model: nn.Module, config: AdapterConfig, base: str) -> None:
    """Insert a new adapter into `model`, in place; afterwards only it and the modules in `config.full` train.

    base: the name of the model, which is saved with the adapter. Needs peft. Raises UserError for targets that are no
    linear layers or are in `config.full` too, and for the text head, whose rows the model also reads one by one.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    owners = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    targets = sorted(named(config.targets, linear, "training.adapter.targets"))
    wanted = config.full
    if wanted is None:
        wanted = [part for part in INTERFACE if any(name.startswith(f"{part}.") for name in owners)]
    full = sorted(named(wanted, owners, "training.adapter.full"))
    for name in targets:
        if name in full:
            raise UserError(f"training.adapter: {name} is both in targets and in full")
        if name == "text_head":  # the end of a span is read from two of its rows
            raise UserError(
                "training.adapter.targets: text_head cannot have an adapter; list it in training.adapter.full"
            )
    layers = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        base_model_name_or_path=base,
    )
    inject_adapter_in_model(layers, model)
    for name in full:
        for weight in model.get_submodule(name).parameters(recurse=False):
            weight.requires_grad_(True)
    layers.modules_to_save = full  # set only now: peft would have wrapped these modules


def merge(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a plain model with the adapter merged; `tensors` is the whole state of the adapted `model`.

    Raises UserError where merging changes no weight.
    """
    config = model.peft_config["default"]
    plain, changed = {}, False
    for name, value in tensors.items():
        layer, adapted, kind = name.rpartition(".base_layer.")
        if adapted and kind == "weight":
            a, b = (tensors[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            merged = _merged(value, a, b, config.lora_alpha / config.r)
            changed = changed or not torch.equal(merged, value)
            plain[f"{layer}.weight"] = merged
        elif ".lora_" not in name:
            plain[f"{layer}.{kind}" if adapted else name] = value
    if not changed:
        raise UserError("the adapter changes nothing: after training, all adapted weights are the same as before")
    return plain


def start_of(model: nn.Module) -> str:
    """A fingerprint of a model that is to be adapted: 16 hex digits over all of its weights."""
    return fingerprint({}, model.state_dict())


def save(model: nn.Module, tensors: Mapping[str, Tensor], folder: str | Path, start: str) -> None:
    """Save the adapter of an adapted `model`, whose whole state is `tensors`, in `folder`.

    start: `start_of` of the model before `insert`.
    """
    folder, config = Path(folder), model.peft_config["default"]
    folder.mkdir(parents=True, exist_ok=True)
    whole = set(config.modules_to_save)
    kept = {
        PREFIX + name.replace(".default.", "."): value
        for name, value in tensors.items()
        if ".lora_" in name or name.rpartition(".")[0] in whole
    }
    save_weights(folder / WEIGHTS, kept, note=start)
    fields = config.to_dict() | {"inference_mode": True, "target_modules": sorted(config.target_modules)}
    write_text(folder / CONFIG, json.dumps(fields, indent=2) + "\n")


def apply(model: LatentLM, folder: str | Path) -> None:
    """Merge the adapter in `folder` (or in the folder of the run that trained it) into `model`, in place.

    Raises UserError for an adapter other than LoRA, for tensors that do not fit the model (the first ten of each kind
    and their count), for a model other than the one that it was trained on (where the file records it, as ours do), and
    where the adapter does not change the model's output.
    """
    folder = Path(folder)
    folder = folder if (folder / CONFIG).is_file() else folder / "adapter"
    scale, base = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    tensors = {name.removeprefix(PREFIX): value for name, value in read_weights(path).items()}
    weights = dict(model.named_parameters(remove_duplicate=False))
    expected = {name: tuple(weights[name].shape) for name in tensors.keys() & weights.keys()}
    layers = []
    for name in tensors:
        layer = name.removesuffix(".lora_A.weight")
        if layer != name and f"{layer}.weight" in weights:
            D, E = weights[f"{layer}.weight"].shape
            R = len(tensors[name])
            expected |= {f"{layer}.lora_A.weight": (R, E), f"{layer}.lora_B.weight": (D, R)}
            layers.append(layer)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if problems := shape_mismatches(found, expected):
        raise UserError(f"{path}: this adapter does not fit the model; {problems}")
    if not layers:
        raise UserError(f"{path}: not an adapter: none of its {len(tensors)} tensors is a lora_A")
    check_floats(path, tensors)
    start = start_of(model)
    if read_note(path) not in (None, start):
        raise UserError(
            f"{path}: this adapter was trained on {base}, but this model has other weights; "
            "if the adapter is merged already, as in model/ of its run, load the model without it"
        )
    before = _answers(model)
    with torch.no_grad():
        for layer in layers:
            weight, sides = weights[f"{layer}.weight"], (tensors[f"{layer}.lora_{side}.weight"] for side in "AB")
            weight.copy_(_merged(weight, *sides, scale))
        for name in tensors.keys() & weights.keys():
            weights[name].copy_(tensors[name])
    if all(torch.equal(a, b) for a, b in zip(before, _answers(model), strict=True)):
        raise UserError(f"{path}: the adapter changes nothing: the model gives the same output without it")


def merge_into(model: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Merge the matrices of an adapter into `model`, in place; named as `insert` does, LAYER.lora_A.default.weight."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    suffix = ".lora_A.default.weight"
    with torch.no_grad():
        for name in tensors:
            if layer := name.removesuffix(suffix) if name.endswith(suffix) else "":
                weight = weights[f"{layer}.weight"]
                weight.copy_(_merged(weight, tensors[name], tensors[f"{layer}.lora_B.default.weight"], scale))


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight (D, E) + scale · b (D, R) a (R, E)."""
    return weight + (scale * (b.float() @ a.float())).to(weight.device, weight.dtype)


def _read_config(path: Path) -> tuple[float, str]:
    """Read s = alpha / rank of a saved adapter and the name of its base model.

    Raises UserError for another kind of adapter.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind, scale = fields["peft_type"], fields["lora_alpha"] / fields["r"]
    except (json.JSONDecodeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path}: not the configuration of a LoRA adapter ({error!r})") from None
    for field in CHANGES_THE_SUM:
        if fields.get(field):
            raise UserError(f"{path}: {field} {fields[field]!r} is not supported")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type {kind!r} is not supported, only LORA")
    return scale, fields.get("base_model_name_or_path") or "a model without a name"


@torch.no_grad()
def _answers(model: LatentLM) -> list[Tensor]:
    """The output of every part of the model for a few fixed inputs: logits, and the probe of each head."""
    device = model.embed_tokens.weight.device
    ids = torch.arange(4, device=device)[None]
    ones = {name: torch.ones(1, spec.latent_dim, device=device) for name, spec in model.modalities.items()}
    x = [model.embed_tokens(ids), *(model.embed_latents[name](one)[None] for name, one in ones.items())]
    x = torch.cat(x, dim=1)  # (1, T, D)
    places = torch.arange(x.shape[1], device=device)[None]
    hidden = model.transformer(x, places, torch.zeros_like(places))[0]  # (T, D)
    return [model.text_head(hidden), *(head.probe(hidden[-1:]) for head in model.heads.values())]
