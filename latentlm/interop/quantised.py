"""Quantised weights are refused by name: copying them without their scales would give a model of wrong numbers.

Place in the flow: interop, called by `checkpoint_files.py` (configs) and `mapping.fill` (tensors). Weights are read
where they are float64, float32, float16 or bfloat16. Integers, fp8 and smaller floats are refused: each format keeps
its scales in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from ..errors import UserError
from ..weights import FLOATS

CONFIG_KEYS = ("quantization_config", "quantization", "compression_config")
"""Sections of a config.json that say how the weights are quantised, at any depth."""

CONFIG_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that GPTQ, AWQ and ModelOpt write beside the weights."""

SUFFIXES = (
    *("SCB", "weight_format", "qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "nested_absmax"),
    *("weight_scale", "weight_scale_inv", "weight_zero_point", "weight_packed", "input_scale", "bitsandbytes__nf4"),
    *("bitsandbytes__fp4", "nested_quant_map", "weight_scale_2", "comfy_quant"),
)
"""Last parts of the names of tensors that only quantised weights have beside them."""

ADVICE = "quantised weights are not supported; take the checkpoint in bfloat16, float16 or float32"


class NamedTensors(Protocol):
    """The tensors of a checkpoint by name; a `CheckpointFiles` is one."""

    path: Path

    @property
    def names(self) -> frozenset[str]: ...
    def dtype(self, name: str) -> torch.dtype: ...


def refuse_quantised_config(folder: Path, config: Mapping) -> None:
    """Raise UserError if config.json, or a file beside it, says that the weights in `folder` are quantised."""
    for key, value in _sections(config):
        method = value.get("quant_method") if isinstance(value, Mapping) else value
        named = key if method is None else f"{key} ({method})"
        raise UserError(f"{folder / 'config.json'}: {named}: {ADVICE}")
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            raise UserError(f"{folder / name}: {ADVICE}")


def refuse_quantised_tensors(files: NamedTensors, wanted: Iterable[str]) -> None:
    """Raise UserError if one of the `wanted` tensors is no plain float, or where tensors of scales lie beside them."""
    scales = sorted(name for name in files.names if name.rpartition(".")[2] in SUFFIXES)
    other = sorted(name for name in wanted if name in files.names and files.dtype(name) not in FLOATS)
    if other:
        dtype = str(files.dtype(other[0])).removeprefix("torch.")
        raise UserError(
            f"{files.path}: {len(other)} tensors have an unsupported dtype, first {other[0]} ({dtype}): {ADVICE}"
        )
    if scales:
        raise UserError(
            f"{files.path}: {len(scales)} tensors with scales of quantised weights, first {scales[0]}: {ADVICE}"
        )


def _sections(fields: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every section of `fields` that describes a quantisation and is not empty."""
    for key, value in fields.items():
        if key in CONFIG_KEYS and value:
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _sections(value, f"{prefix}{key}.")
