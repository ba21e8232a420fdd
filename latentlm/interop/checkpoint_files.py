"""A checkpoint of another project as tensors by name, read one at a time.

Place in the flow: interop, files ──▶ tensors; `mapping.py` puts them into a module. Nothing here depends on a model.
Safetensors files, whole or in shards with an index, hold no code. Pickled weights are read with `weights_only`, which
builds only tensors and plain containers; a line on stderr says so.
"""

from __future__ import annotations

import logging
import struct
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import read_json
from ..errors import UserError
from ..hub import from_hub, is_hub_id
from .quantised import refuse_quantised_config

STEMS = ("model", "diffusion_pytorch_model")
"""Names of weight files in `transformers` and `diffusers`, without suffix."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
READABLE = ("*.json", "*.txt", "*.model", "*.safetensors")
ZIP = b"PK\x03\x04"
"""First bytes of a zip file, the format of torch.save."""

NOT_A_PICKLE = (
    *(UnpicklingError, RuntimeError, EOFError, IndexError, KeyError, ValueError, TypeError, AttributeError),
    *(AssertionError, struct.error),
)
"""Exceptions that `torch.load` raises for a pickle with code and for damaged files."""

SAFETENSORS_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

log = logging.getLogger("latentlm")


def locate(name: str | Path) -> Path:
    """The path of a local folder or file, or the folder with the downloaded files of a hub id ("owner/name").

    Pickled weights are downloaded only from a repository without safetensors. Raises UserError, one line, that says
    which files to put where.
    """
    path = Path(name)
    if path.exists():
        return path
    if not is_hub_id(name):
        raise UserError(f"{name}: no such file or folder, and not a hub id (owner/name)")
    folder = from_hub(str(name), READABLE)
    if any(folder.rglob("*.safetensors")):
        return folder
    return from_hub(str(name), (*READABLE, *(f"*{suffix}" for suffix in PICKLED)))


class CheckpointFiles:
    """The tensors of one checkpoint. `names`, `shape` and `dtype` come from the headers, `read` loads one tensor.

    config   the fields of config.json beside the weights, {} where there is none
    """

    def __init__(self, path: Path, config: dict, shapes: dict[str, tuple[int, ...]]):
        self.path = path
        self.config = config
        self._shapes = shapes

    @classmethod
    def open(cls, path: str | Path) -> CheckpointFiles:
        """Open a file, or a folder as `transformers` and `diffusers` write it.

        Raises UserError, one line, that names the file: missing, unreadable, or a config of quantised weights.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        refuse_quantised_config(folder, config)
        files = _files_of(path)
        if files[0].suffix in PICKLED:
            return LoadedTensors(path, config, {k: v for file in files for k, v in _flatten(unpickle(file))})
        return _SafetensorsFiles(path, config, files)

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint, with config.json and tokenizer.json."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in the file."""
        raise NotImplementedError

    def read(self, name: str) -> Tensor:
        """The tensor as the file has it. It may be a view of the mapped file: copy it to keep it."""
        raise NotImplementedError


class _SafetensorsFiles(CheckpointFiles):
    """Safetensors files, of which one is open at a time, so that at most one is in memory."""

    def __init__(self, path: Path, config: dict, files: list[Path]):
        self._where: dict[str, Path] = {}
        self._dtypes: dict[str, str] = {}  # as safetensors spells them
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with _open_safetensors(file) as shard:
                for name in shard.keys():  # noqa: SIM118 — not a dict
                    if name in self._where:
                        raise UserError(f"{file}: {name} is in {self._where[name].name} as well")
                    self._where[name] = file
                    part = shard.get_slice(name)
                    shapes[name] = tuple(part.get_shape())
                    self._dtypes[name] = part.get_dtype()
        self._shard: tuple[Path, safe_open] | None = None
        super().__init__(path, config, shapes)

    def dtype(self, name: str) -> torch.dtype:
        known = SAFETENSORS_FLOATS.get(self._dtypes[name])
        return known or self.read(name).dtype

    def read(self, name: str) -> Tensor:
        file = self._where[name]
        if self._shard is None or self._shard[0] != file:
            self._shard = (file, _open_safetensors(file))
        return self._shard[1].get_tensor(name)


class LoadedTensors(CheckpointFiles):
    """Tensors that are in memory already."""

    def __init__(self, path: Path, config: dict, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        super().__init__(path, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})

    @classmethod
    def of(cls, path: Path, tree: Mapping) -> LoadedTensors:
        """The tensors in `tree`, which came from `path`: nested keys become dotted names, other values are dropped."""
        return cls(path, {}, dict(_flatten(tree)))

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _files_of(path: Path) -> list[Path]:
    """The weight files at `path`, a file or a folder; safetensors are preferred to pickled files."""
    if path.is_file():
        if path.suffix not in (".safetensors", *PICKLED):
            raise UserError(f"{path}: not a weights file (known: .safetensors, {', '.join(PICKLED)})")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    for name in (*(f"{stem}.safetensors" for stem in STEMS), "pytorch_model.bin", "diffusion_pytorch_model.bin"):
        index, stem = path / f"{name}.index.json", Path(name)
        if index.is_file():
            return _indexed(index)
        found = [path / name] if (path / name).is_file() else sorted(path.glob(f"{stem.stem}-*-of-*{stem.suffix}"))
        if found:
            return found
    others = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", *PICKLED))
    if len(others) == 1:
        return others
    listed = ", ".join(p.name for p in others[:10]) or "none"
    raise UserError(f"{path}: expected model.safetensors or its shards (weights here: {listed}); pass the file itself")


def _indexed(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"{index}: weight_map.{tensor} is {name!r}, expected the name of a file in this folder")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{index}: {len(absent)} of {len(files)} shards are not here: {', '.join(absent[:10])}")
    return files


def _open_safetensors(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from None


def unpickle(file: Path) -> Mapping:
    """The dictionary in a pickled file, by `weights_only`. Raises UserError naming a file that holds anything else."""
    log.warning("%s: pickled weights, read with weights_only (tensors and plain containers, no code)", file)
    is_zip = _is_whole_zip(file)
    # Training scripts of the MAE family keep their argument list beside the weights. A Namespace is plain data.
    with torch.serialization.safe_globals([Namespace]):
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
        except NOT_A_PICKLE as error:
            # torch goes on to say how its check is switched off; the reason is the last part
            reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:200]
            raise UserError(f"{file}: cannot be read with weights_only ({reason or 'the file is cut off'})") from None
    if not isinstance(loaded, Mapping):
        raise UserError(f"{file}: holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def _is_whole_zip(file: Path) -> bool:
    """Whether `file` is a zip file. Raises UserError for an empty file, and for a zip file without its end.

    torch takes a zip file without its end for one of its older formats.
    """
    with open(file, "rb") as handle:
        start = handle.read(len(ZIP))
    if not start:
        raise UserError(f"{file}: the file is empty")
    try:
        is_zip = zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        is_zip = False
    if start == ZIP and not is_zip:
        raise UserError(f"{file}: the file is cut off or damaged; download or copy it again")
    return is_zip


def _flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
