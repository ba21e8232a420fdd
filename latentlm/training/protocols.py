"""What the trainer asks of whoever feeds it: micro-batches, and a loader of them.

Place in the flow: met by `PackedBatch` and `MediaBatch`, and by the loaders of `data/`.
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
    """`num_lanes` deterministic lanes of micro-batches; rank r serves the lanes m ≡ r modulo the world's size.

    A step takes one micro-batch of every lane. `state_dict` is JSON: {"lanes": {"0": position, ...}} for this
    rank's lanes; `load_state_dict` gets the union over the ranks, from any earlier number of processes.
    `close` ends its workers, where it has any; whoever made the loader calls it.
    """

    num_lanes: int

    def next_step(self) -> list[Batch]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


def check(config: TrainingConfig, loader: Loader, world: World, samples: bool) -> None:
    """UserError for a configuration that this loader and these processes cannot run."""
    num = config.global_micro_batches
    check_divisible(num, world.size)
    if loader.num_lanes != num:
        raise UserError(f"the loader has {loader.num_lanes} lanes, training.global_micro_batches is {num}")
    if samples and config.sample_every and config.parallel == "shard" and world.size > 1:
        raise UserError("training.sample_every does not work with training.parallel shard: sample from an export")
