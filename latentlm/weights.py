"""Safetensors files: written atomically, matched key by key when read. No pickle.

Place in the flow: below tokenizers and model, which both store their weights this way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import UserError

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes in which weights are read. Integers and fp8 are refused, since their scales are not read."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Context manager: yields a temporary path for the body to write; on exit the file is synced and renamed to `path`.

    If the body raises, `path` stays unchanged and the temporary file is removed. OSErrors and safetensors' own errors
    are raised as OSErrors that name `path`. The temporary name has the suffix of `path`, which may choose the format.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from None
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Context manager: a temporary folder that is renamed to `target` on exit, or removed where the body raises.

    Raises UserError where `target` exists.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp lets only the owner read it
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def attach_path_to_oserror(path: Path) -> Iterator[None]:
    """Context manager: adds `path` to OSErrors of the body that name no file, and turns safetensors' errors into such.

    Python names a file that cannot be opened, but not one that cannot be written to.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically. Raises OSError naming `path` where it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_weights(
    path: str | Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, note: str | None = None
) -> None:
    """Write `tensors` to `path` (temporary file, fsync, rename). `dtype` casts the floating-point ones.

    note: a string for the file's header, which `read_note` returns. It replaces the entry "format", because safetensors
    writes several entries in an order that changes between runs, and equal weights should give equal files.
    Raises OSError naming `path` where it cannot be written, for instance on a full disk.
    """
    cast: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        cast[name] = value.clone() if value.data_ptr() in seen else value  # tied weights: safetensors wants no sharing
        seen.add(value.data_ptr())
    with replacing(path) as temporary:
        save_file(cast, temporary, metadata={"format": "pt"} if note is None else {"note": note})
        temporary.chmod(0o644)  # safetensors lets only the owner read it


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Copy the weights of `path` into `module`, cast to its dtypes.

    Raises UserError, one line, naming the file and the first ten missing, extra and misshaped keys with their counts,
    or a tensor of integers or fp8 where the module has floats.
    """
    loaded = read_weights(path)
    expected = module.state_dict()
    shapes = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (loaded, expected))
    if problems := shape_mismatches(*shapes):
        raise UserError(f"{path}: weights do not fit this model; {problems}")
    check_floats(path, {name: loaded[name] for name, value in expected.items() if value.is_floating_point()})
    module.load_state_dict(loaded)


def check_floats(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for the first of `tensors` whose dtype is not in FLOATS, naming it and the file."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} is {dtype}; quantised weights are not supported")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises UserError where it is missing or cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def read_note(path: str | Path) -> str | None:
    """The note in the header of a safetensors file, None where there is none."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("note")


def shape_mismatches(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """One line on how two sets of tensors differ: counts and first ten names missing, extra and misshaped.

    Empty if names and shapes are equal.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "misshaped": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    return "; ".join(f"{len(names)} {kind}: {', '.join(names[:10])}" for kind, names in problems.items() if names)


def fingerprint(fields: Any, tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of the SHA-256 over `fields` (JSON) and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(_canonical(fields))
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
