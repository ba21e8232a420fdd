"""A checkpoint seen through other names and shapes, for the few tensors that no rule of `mapping.py` can name.

Place in the flow: interop, between `checkpoint_files.py` and `mapping.fill`. Examples: a 1×1 convolution read as a
matrix, a bias that a file leaves out because it is zero, two parameters of which only the sum matters. Tensors are
still read one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..weights import FLOATS
from .checkpoint_files import CheckpointFiles


@dataclass(frozen=True)
class Derived:
    """The tensor `make(*sources)`. `make` must not look at values: its shape is found on the meta device."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor]


class View(CheckpointFiles):
    """`files` with the tensors `derived` in place of those that they are made of.

    rename   gives the new name of each tensor in `files`. A derived tensor of which the files lack a part is left out,
             and is later reported as missing; the parts that are there keep their names.

    Raises UserError where `rename` gives two tensors the same name.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        derived: Mapping[str, Derived],
        rename: Callable[[str], str] = lambda name: name,
    ):
        self._files = files
        self._names: dict[str, str] = {}
        for name in sorted(files.names):
            other = self._names.setdefault(rename(name), name)
            if other != name:
                raise UserError(f"{files.path}: {other} and {name} are both the tensor {rename(name)}")
        self._derived = {name: d for name, d in derived.items() if all(part in self._names for part in d.sources)}
        used = {part for d in self._derived.values() for part in d.sources}
        shapes = {name: files.shape(theirs) for name, theirs in self._names.items() if name not in used}
        for name, d in self._derived.items():
            shapes[name] = tuple(d.make(*(torch.empty(self._shape(part), device="meta") for part in d.sources)).shape)
        super().__init__(files.path, files.config, shapes)

    def dtype(self, name: str) -> torch.dtype:
        """Of the first part that is no plain float, else of the first part."""
        if name not in self._derived:
            return self._files.dtype(self._names[name])
        dtypes = [self._files.dtype(self._names[part]) for part in self._derived[name].sources]
        return next((dtype for dtype in dtypes if dtype not in FLOATS), dtypes[0])

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._names[name])

    def read(self, name: str) -> Tensor:
        if name not in self._derived:
            return self._files.read(self._names[name])
        d = self._derived[name]
        return d.make(*(self._files.read(self._names[part]) for part in d.sources))
