"""Reads the folder of a training run: its checkpoints, and the tensors of one of them.

Place in the flow: below `checkpoint.py`, which loads a model from a step, and training, which writes and resumes them.

    setup/                       config.json and tokenizers/: what loading a step needs beside its tensors
    checkpoints/step-00001234/   state/*.safetensors and trainer.json; complete once it has this name
    model/                       written at the end of the run
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import UserError

RECIPE, SETUP, CHECKPOINTS, MODEL = "recipe.yaml", "setup", "checkpoints", "model"
_STEP = re.compile(r"step-(\d{8,})")


def step_of(folder: Path) -> int | None:
    """The step number in the name of a complete checkpoint; None for any other folder."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def is_step(folder: Path) -> bool:
    """Whether `folder` is a step's checkpoint, and not a model's folder that happens to have such a name."""
    return step_of(folder) is not None and not (folder / "config.json").is_file()


def complete_steps(checkpoints: Path) -> list[Path]:
    """The complete checkpoints in the folder `checkpoints`, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if step_of(path) is not None]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def state_shapes(step: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a step by name. Raises UserError that names an incomplete file."""
    import torch.distributed.checkpoint as dcp

    for file in sorted((step / "state").glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass  # the header is there, and as many bytes as it says
        except SafetensorError as error:
            raise UserError(f"{file}: this checkpoint's file is incomplete ({error}); remove {step}") from None
    stored = dcp.HuggingFaceStorageReader(str(step / "state")).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in stored.items()}


def read_state(step: Path, tensors: Mapping[str, Tensor], *, alone: bool = True) -> None:
    """Copy tensors of a step into `tensors`, in place and by name, however many processes wrote them.

    alone: only this process reads; False: all processes of the run call this together.
    """
    import torch.distributed.checkpoint as dcp

    with single_process():
        reader = dcp.HuggingFaceStorageReader(str(step / "state"))
        dcp.load(dict(tensors), storage_reader=reader, no_dist=alone)


@contextmanager
def single_process() -> Iterator[None]:
    """Context manager: hides torch's warning that `torch.distributed` is not initialised."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
