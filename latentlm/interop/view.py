"""A checkpoint seen through other names and shapes, for the few tensors that no rule of `mapping.py` can name.

Place in the flow: interop, between `checkpoint_files.py` and `mapping.fill`: a 1×1 convolution read as a matrix, a bias that a
file leaves out because it is zero, two parameters of which only the sum matters. Still one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint_files import CheckpointFiles


@dataclass(frozen=True)
class Derived:
    """`make(*tensors of `sources`)`. It must keep to what shapes alone decide: it is asked for its shape on meta."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor]


class View(CheckpointFiles):
    """`files` with the tensors `derived` in place of those that they are made of.

    rename   what each name of `files` is called here. A derived tensor of which the files lack a part is left out,
    and so named as missing by whoever wants it; the parts that are there then keep their names.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        derived: Mapping[str, Derived],
        rename: Callable[[str], str] = lambda name: name,
    ):
        self._files = files
        self._names = {rename(name): name for name in files.names}
        self._derived = {name: d for name, d in derived.items() if all(part in self._names for part in d.sources)}
        used = {part for d in self._derived.values() for part in d.sources}
        shapes = {name: files.shape(theirs) for name, theirs in self._names.items() if name not in used}
        for name, d in self._derived.items():
            shapes[name] = tuple(d.make(*(torch.empty(self._shape(part), device="meta") for part in d.sources)).shape)
        super().__init__(files.path, files.config, shapes)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._names[name])

    def read(self, name: str) -> Tensor:
        if name not in self._derived:
            return self._files.read(self._names[name])
        d = self._derived[name]
        return d.make(*(self._files.read(self._names[part]) for part in d.sources))
