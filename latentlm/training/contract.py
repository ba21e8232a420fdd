"""What the trainer asks of whoever calls it: a run, micro-batches, and a loader of them.

Place in the flow: a kind of recipe builds the `Run` and the `Loader`; `PackedBatch` and `MediaBatch` are batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..config import TrainingConfig
from ..weights import save_weights
from .distributed import World

if TYPE_CHECKING:
    from .objective import Objective


class Batch(Protocol):
    """One micro-batch: PackedBatch or MediaBatch."""

    seed: int

    @property
    def num_tokens(self) -> int: ...
    def target_counts(self) -> dict[str, int]: ...
    def to(self, device: torch.device | str) -> Batch: ...


class Loader(Protocol):
    """`num_streams` deterministic streams of micro-batches; rank r serves the streams m ≡ r modulo the world's size.

    A step takes one micro-batch of every stream. `state_dict` is JSON: {"streams": {"0": position, ...}} for this
    rank's streams; `load_state_dict` gets the union over the ranks, from any earlier number of processes.
    `close` ends its workers, where it has any; whoever made the loader calls it.
    """

    num_streams: int

    def next_step(self) -> list[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@dataclass(kw_only=True)
class Run:
    """What is trained, and what is done around it. A kind of recipe may add fields for itself.

    model         what is averaged, sampled and exported
    objective     how it is trained; by default by its own losses alone
    identity      JSON values a resumed run must agree on (a recipe's model, the tokenizers' fingerprints)
    metadata      JSON values kept in every checkpoint, for people
    unit          what a batch's `num_tokens` counts, for the log
    tensorboard   whether to log there, too
    on_start      called on rank 0 before the first step, once a checkpoint is accepted or there is none; not at all
                  where nothing is left to train
    write         called on rank 0 with a path and the whole weights by name, to keep them there; None: `on_export` does
    on_export     called on rank 0 with the folder after the weights are there: config.json, tokenizers
    on_sample     called on rank 0 with (model in eval mode with EMA weights, step) every `training.sample_every` steps;
                  the figures that it returns by name, if any, are logged
    """

    model: nn.Module
    objective: Objective | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "tokens"
    tensorboard: bool = False
    on_start: Callable[[], None] | None = None
    write: Callable[[Path, Mapping[str, Tensor]], None] | None = save_weights
    on_export: Callable[[Path], None] | None = None
    on_sample: Callable[[nn.Module, int], Mapping[str, float] | None] | None = None


def check(config: TrainingConfig, loader: Loader, world: World, samples: bool) -> None:
    """ValueError for a configuration that this loader and these processes cannot run."""
    if config.accumulation % world.size:
        raise ValueError(f"training.accumulation {config.accumulation} is not a multiple of the {world.size} processes")
    if loader.num_streams != config.accumulation:
        raise ValueError(f"the loader has {loader.num_streams} streams, training.accumulation is {config.accumulation}")
    if samples and config.sample_every and config.parallel == "shard" and world.size > 1:
        raise ValueError("training.sample_every does not work with training.parallel shard: sample from an export")
