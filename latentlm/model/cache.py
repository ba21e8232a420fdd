"""Preallocated key-value cache; each row belongs to one request from its start to its end (PAPER §1.5).

Place in the flow: 3, filled by the transformer while `generation/` decodes.
Legend: `L` layers, `R` cache rows, `K` key-value heads, `S` capacity, `E` head dim, `B` rows of a pass, `P` rows of the
block that a pass looks at, `H` query heads, `T` new positions.

A request claims a row for its condition and, with guidance, a second one for the null branch; it releases them at its
end. Rows never move. A forward pass works on a view of the block from its first to its last row. Rows of the block that
are not in the pass get queries of zeros, whose results are dropped; nothing is written to them. If the block has many
such rows, the pass works on a copy of its own rows instead. Positions beyond a row's length are masked. Masking needs
finite numbers, so memory starts as zeros, and a released row is set to zeros.
Lengths are kept on the host, so that deciding what to attend to needs no device sync.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

MOST_SPREAD = 2
"""If the block has more than this many rows per row of the pass, the pass works on a copy of its own rows."""


@dataclass
class LayerCache:
    """One layer's view of the cache for one forward pass: where new keys go, and how many positions are attended."""

    keys: Tensor  # (P, K, S, E), a view
    values: Tensor
    rows: Tensor | None  # (B,) rows of the block that are in this pass, None for all of them in order
    places: tuple[Tensor, Tensor] | int  # rows (B, 1), columns (B, T) of the new keys; or their common first column
    horizon: int  # positions [0, horizon) are attended
    apart: bool  # the pass works on a copy of its own rows: P is B

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, E) at `places`; return the keys and values of the block up to the horizon,
        (P, K, horizon, E): views, or copies of the pass's own rows where they lie far apart."""
        if isinstance(self.places, int):
            new = slice(self.places, self.places + k.shape[2])
            self.keys[:, :, new] = k
            self.values[:, :, new] = v
        else:
            rows, columns = self.places
            self.keys[rows, :, columns] = k.transpose(1, 2).to(self.keys.dtype)
            self.values[rows, :, columns] = v.transpose(1, 2).to(self.values.dtype)
        seen = slice(self.horizon)
        if self.apart:
            return self.keys[self.rows, :, seen], self.values[self.rows, :, seen]
        return self.keys[:, :, seen], self.values[:, :, seen]

    def spread(self, q: Tensor) -> Tensor:
        """Queries of the block (P, H, T, E) from those of the pass (B, H, T, E); zeros for rows not in the pass."""
        if self.rows is None or self.apart:
            return q
        return q.new_zeros(len(self.keys), *q.shape[1:]).index_copy_(0, self.rows, q)

    def collect(self, y: Tensor) -> Tensor:
        """Results of the pass (B, H, T, E) from those of the block (P, H, T, E)."""
        return y if self.rows is None or self.apart else y[self.rows]


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
        self._written = [0] * num_rows  # positions of each row that may hold something
        self._free = list(range(num_rows))

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def claim(self) -> int:
        """Reserve the lowest free row, which is empty, until `release`; returns its number."""
        return heappop(self._free)

    @torch.inference_mode()
    def release(self, row: int) -> None:
        """Give a claimed row back and set it to zeros: a mask does not hide infinite values or NaN."""
        assert row not in self._free
        for memory in (self.keys, self.values):
            memory[:, row, :, : self._written[row]].zero_()
        self.lengths[row] = self._written[row] = 0
        heappush(self._free, row)

    def open(self, num_new: int, rows: list[int] | None = None) -> CachePass:
        """Begin a forward pass that appends `num_new` positions to `rows` (ascending; default: every row).

        No row may become longer than the capacity.
        """
        rows = list(range(self.num_rows)) if rows is None else rows
        horizon = max(self.lengths[row] for row in rows) + num_new
        assert horizon <= self.capacity, f"{horizon} positions in a cache of {self.capacity}"
        for row in rows:
            self._written[row] = max(self._written[row], self.lengths[row] + num_new)
        return CachePass(self, rows, num_new)

    def reserve(self, length: int, limit: int) -> None:
        """Grow the capacity to at least `length` positions, by doubling, up to `limit`.

        Growing copies all rows; all copies together are at most as large as the final cache. A cache that was made with
        its full capacity never grows.
        """
        old = self.capacity
        if length <= old:
            return
        for name in ("keys", "values"):
            current = getattr(self, name)
            shape = (*current.shape[:3], min(limit, max(length, 2 * old)), current.shape[4])
            larger = torch.zeros(shape, dtype=current.dtype, device=current.device)
            larger[:, :, :, :old] = current
            setattr(self, name, larger)


class CachePass:
    """One forward pass over the cache: positions, mask and layer views. The caller advances the lengths afterwards."""

    def __init__(self, cache: KVCache, rows: list[int], num_new: int):
        device = cache.keys.device
        starts = [cache.lengths[row] for row in rows]
        first, last = rows[0], rows[-1] + 1
        self.cache = cache
        self.block = slice(first, last)
        self.horizon = max(starts) + num_new
        new = torch.arange(num_new, device=device)
        self.positions = torch.tensor(starts, device=device)[:, None] + new  # (B, T), also those of RoPE
        whole, uniform = len(rows) == last - first, len(set(starts)) == 1
        inside = torch.tensor([row - first for row in rows], device=device)
        self.rows = None if whole else inside
        self.apart = last - first > MOST_SPREAD * len(rows)
        self.places = starts[0] if whole and uniform else (inside[:, None], self.positions)
        self.mask = None  # (P, 1, T, horizon) bool, the positions that each new one attends to; None: plain causal
        if not (uniform and (num_new == 1 or starts[0] == 0)):
            seen = torch.arange(self.horizon, device=device)
            last_seen = self.positions
            if not (whole or self.apart):
                last_seen = new.repeat(last - first, 1).index_copy_(0, inside, self.positions)
            self.mask = (seen <= last_seen[..., None])[:, None]

    def layer(self, index: int) -> LayerCache:
        keys, values = self.cache.keys[index, self.block], self.cache.values[index, self.block]
        return LayerCache(keys, values, self.rows, self.places, self.horizon, self.apart)
