"""Protocols of the trainer's input: micro-batches, and the loader that yields them.

Place in the flow: 5, implemented by `PackedBatch`, `MediaBatch` and the loaders of `data/`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..config import TrainingConfig, check_divisible
from ..errors import UserError
from .distributed import World


class Batch(Protocol):
    """One micro-batch: PackedBatch or MediaBatch."""

    seed: int

    @property
    def num_tokens(self) -> int: ...
    def target_counts(self) -> dict[str, int]: ...
    def to(self, device: torch.device | str) -> Batch: ...


class Loader(Protocol):
    """Yields the micro-batches of each step: one from each of `num_lanes` deterministic lanes.

    Rank r serves the lanes m ≡ r modulo the world's size. `state_dict` is JSON, {"lanes": {"0": position, …}} for
    the lanes of this rank; `load_state_dict` gets the union over all ranks, from any earlier number of processes.
    `close` ends the workers; the caller that made the loader calls it.
    """

    num_lanes: int

    def next_step(self) -> list[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


def check(config: TrainingConfig, loader: Loader, world: World, samples: bool) -> None:
    """Raise UserError for a configuration that cannot run with this loader and these processes."""
    num = config.global_micro_batches
    check_divisible(num, world.size)
    if loader.num_lanes != num:
        raise UserError(f"the loader has {loader.num_lanes} lanes, training.global_micro_batches is {num}")
    if samples and config.sample_every and config.parallel == "shard" and world.size > 1:
        raise UserError("training.sample_every does not work with training.parallel shard: sample from an export")
