"""Rules between our parameters and another project's tensors, which work in both directions.

Place in the flow: interop, `checkpoint_files.py` ──▶ module and module ──▶ safetensors. An importer is a list of rules.
A rule says which of their tensors make up one of ours: a single one, or several concatenated (q, k, v; gate, up).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..weights import save_weights, shape_mismatches, write_text
from .checkpoint_files import CheckpointFiles
from .quantised import refuse_quantised_tensors

SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True)
class Rule:
    """target = the source ("one"), or the sources concatenated along dimension 0 ("cat").

    sizes   for "cat": lengths of the sources along dimension 0; equal by default
    rows    for "one": the source is only the first `rows` rows of the target; the caller fills the others
    """

    target: str
    sources: tuple[str, ...]
    combine: Literal["one", "cat"] = "one"
    sizes: tuple[int, ...] = ()
    rows: int | None = None

    def __post_init__(self):
        assert (len(self.sources) == 1) == (self.combine == "one"), self
        assert self.rows is None or self.combine == "one", self
        assert not self.sizes or len(self.sizes) == len(self.sources), self

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """The views of our `tensor` that correspond to the sources, in their order."""
        if self.combine == "one":
            return [tensor if self.rows is None else tensor[: self.rows]]
        sizes = self.sizes or (tensor.shape[0] // len(self.sources),) * len(self.sources)
        assert sum(sizes) == tensor.shape[0], (self, tuple(tensor.shape))
        return list(tensor.split(sizes))


def weight_and_bias(ours: str, theirs: str) -> list[Rule]:
    """The rules of a layer that has a weight and a bias on both sides."""
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def fill(
    module: nn.Module,
    files: CheckpointFiles,
    rules: Sequence[Rule],
    *,
    ignore: Iterable[str] = (),
    keep: Iterable[str] = (),
) -> None:
    """Copy `files` into `module` by `rules`, tensor by tensor, cast to the module's dtypes.

    Parameters on the meta device are allocated on the CPU first. ignore: patterns of names in the files that are not
    read. keep: patterns of our names that no rule fills; these keep their values and must not be on the meta device.
    Raises UserError for quantised weights, and as `check` does; the module is then unchanged.
    """
    refuse_quantised_tensors(files, [name for rule in rules for name in rule.sources])
    check(module, files, rules, ignore=ignore, keep=keep)
    left = [name for name, tensor in _unfilled(module, rules).items() if tensor.is_meta]
    assert not left, f"kept, but on the meta device: {left[:10]}"
    materialise(module)
    ours = _tensors(module)
    with torch.no_grad():
        for rule in rules:
            for part, name in zip(rule.parts(ours[rule.target]), rule.sources, strict=True):
                part.copy_(files.read(name))


def check(
    module: nn.Module,
    files: CheckpointFiles,
    rules: Sequence[Rule],
    *,
    ignore: Iterable[str] = (),
    keep: Iterable[str] = (),
) -> None:
    """Check the names and shapes that `fill` needs; the module may be on the meta device.

    Raises UserError, one line, with the first ten missing, extra and misshaped names and their counts.
    """
    _check_cover(module, rules, tuple(keep))
    ours, ignore = _tensors(module), tuple(ignore)
    wanted = {
        name: part for rule in rules for name, part in zip(rule.sources, rule.parts(ours[rule.target]), strict=True)
    }
    read = sorted(name for name in files.names if name in wanted or not matches(name, ignore))
    expected = {name: tuple(part.shape) for name, part in wanted.items()}
    if problems := shape_mismatches({name: files.shape(name) for name in read}, expected):
        raise UserError(f"{files.path}: weights do not fit this model; {problems}")


def export(
    module: nn.Module,
    rules: Sequence[Rule],
    folder: str | Path,
    *,
    keep: Iterable[str] = (),
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write `module` to `folder` under the other project's names.

    The result is model.safetensors, or shards of about `shard_size` bytes and their index. keep: patterns of our names
    that are not written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_cover(module, rules, tuple(keep))
    ours = _tensors(module)
    named = [item for rule in rules for item in zip(rule.sources, rule.parts(ours[rule.target]), strict=True)]
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in named:
        if used and used + tensor.nbytes > shard_size:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    if len(shards) == 1:
        save_weights(folder / "model.safetensors", shards[0])
        return
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_weights(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for _, tensor in named)},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def materialise(module: nn.Module) -> None:
    """Replace every tensor on the meta device by an empty one on the CPU; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is None or not tensor.is_meta:
                    continue
                assert name not in part._non_persistent_buffers_set, (
                    f"no file holds {name}: build it off the meta device"
                )
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                store[name] = made[id(tensor)]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by every name they have."""
    return module.state_dict(keep_vars=True)


def _check_cover(module: nn.Module, rules: Sequence[Rule], keep: tuple[str, ...]) -> None:
    """Assert that the rules fill each tensor of `module` exactly once, under one of its names."""
    ours = _tensors(module)
    targets = [rule.target for rule in rules]
    unknown = [target for target in targets if target not in ours]
    assert not unknown, f"rules for what the module does not have: {unknown[:10]}"
    assert len({id(ours[target]) for target in targets}) == len(targets), "two rules fill the same tensor"
    unruled = [name for name in _unfilled(module, rules) if not matches(name, keep)]
    assert not unruled, f"no rule fills {unruled[:10]}"


def _unfilled(module: nn.Module, rules: Sequence[Rule]) -> dict[str, Tensor]:
    ours = _tensors(module)
    filled = {id(ours[rule.target]) for rule in rules}
    return {name: tensor for name, tensor in ours.items() if id(tensor) not in filled}


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether `name` fits one of the `patterns`, in which * stands for anything."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
