"""Safetensors in and out, written atomically and matched key by key. No pickle on this path.

Place in the flow: below tokenizers and model, which both keep their weights this way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write `tensors` to `path` (temporary file, fsync, rename). `dtype` casts the floating-point ones."""
    path = Path(path)
    cast = {
        name: tensor.detach().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(cast, temporary, metadata={"format": "pt"})
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # safetensors writes files for their owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Copy the weights of `path` into `module`, cast to its dtypes.

    Raises ValueError, one line, naming the file and the first ten missing, extra and misshaped keys with their counts.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in loaded],
        "extra": [key for key in loaded if key not in expected],
        "misshaped": [
            f"{key} {tuple(loaded[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in loaded and loaded[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        parts = [f"{len(keys)} {kind}: {', '.join(keys[:10])}" for kind, keys in problems.items() if keys]
        raise ValueError(f"{path}: weights do not fit this model; {'; '.join(parts)}")
    module.load_state_dict(loaded)
