"""Preallocated key-value cache with named branches: one for the condition, one for guidance (PAPER §1.5).

Place in the flow: 3, filled by the transformer while `generation/` decodes.
Legend: `L` layers, `R` cache rows, `K` key-value heads, `S` capacity, `E` head dim, `T` new positions.

Every request owns one row of each branch that it uses; the rows of all branches lie in one tensor, so that a step is
one forward pass over all of them. Lengths live on the host: deciding what to attend to needs no device sync.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """One layer's view for one forward pass: where new keys go, and how far the pass has to look."""

    keys: Tensor  # (R, K, S, E)
    values: Tensor
    rows: Tensor | None  # (B,) cache rows of this pass, None for all of them in order
    starts: Tensor | int  # (B,) first free position of each row, or one int shared by all
    horizon: int  # positions [0, horizon) are attended

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, E) at `starts`; return keys and values up to the horizon, (B, K, horizon, E)."""
        T = k.shape[2]
        if self.rows is None and isinstance(self.starts, int):
            self.keys[:, :, self.starts : self.starts + T] = k
            self.values[:, :, self.starts : self.starts + T] = v
            return self.keys[:, :, : self.horizon], self.values[:, :, : self.horizon]
        rows = torch.arange(len(k), device=k.device) if self.rows is None else self.rows
        starts = self.starts if isinstance(self.starts, Tensor) else torch.full_like(rows, self.starts)
        columns = starts[:, None] + torch.arange(T, device=k.device)  # (B, T)
        self.keys[rows[:, None], :, columns] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[rows[:, None], :, columns] = v.transpose(1, 2).to(self.values.dtype)
        keys, values = self.keys[:, :, : self.horizon], self.values[:, :, : self.horizon]
        return (keys, values) if self.rows is None else (keys[rows], values[rows])


class KVCache:
    """Keys and values of all layers for `num_rows` rows of at most `capacity` positions."""

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        shape = (num_layers, num_rows, num_kv_heads, capacity, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * num_rows

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    def open(self, num_new: int, rows: list[int] | None = None) -> CachePass:
        """Begin a forward pass that appends up to `num_new` positions to `rows` (default: to every row).

        Raises ValueError when a row would outgrow the capacity.
        """
        chosen = list(range(self.num_rows)) if rows is None else rows
        starts = [self.lengths[row] for row in chosen]
        horizon = max(starts) + num_new
        if horizon > self.capacity:
            raise ValueError(f"sequence of {horizon} positions exceeds the context of {self.capacity}")
        return CachePass(self, rows, starts, horizon)

    def reserve(self, length: int, limit: int) -> None:
        """Room for `length` positions, by doubling up to `limit`."""
        if length <= self.capacity:
            return
        extra = min(limit, max(length, 2 * self.capacity)) - self.capacity
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, extra))

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these, in this order."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys = self.keys.index_select(1, index)
        self.values = self.values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]


class CachePass:
    """One forward pass over the cache: positions, mask and layer views. The caller then advances the lengths."""

    def __init__(self, cache: KVCache, rows: list[int] | None, starts: list[int], horizon: int):
        device = cache.keys.device
        self.cache = cache
        self.rows = None if rows is None else torch.tensor(rows, device=device)
        self.uniform = len(set(starts)) == 1
        self.starts = torch.tensor(starts, device=device)  # (B,)
        self.start = starts[0]
        self.horizon = horizon

    def positions(self, T: int) -> Tensor:
        """RoPE positions (B, T) of the new tokens."""
        return self.starts[:, None] + torch.arange(T, device=self.starts.device)

    def mask(self, T: int) -> Tensor | None:
        """What each new position may see, (B, 1, T, horizon) bool; None where plain causal attention says the same."""
        if self.uniform and (T == 1 or self.start == 0):
            return None
        seen = torch.arange(self.horizon, device=self.starts.device)
        return (seen <= self.positions(T)[..., None])[:, None]

    def layer(self, index: int) -> LayerCache:
        starts = self.start if self.uniform else self.starts
        return LayerCache(self.cache.keys[index], self.cache.values[index], self.rows, starts, self.horizon)
