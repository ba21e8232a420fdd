"""Documents or media ──▶ the micro-batches of each step: deterministic, resumable, for any number of processes.

Place in the flow: 2, sources ──▶ `Mixture` (which item next) ──▶ `DocumentLoader` or `MediaLoader` (a micro-batch).

A run has `num_lanes` lanes: endless sequences of micro-batches, each of which gives one to every step. The content of
lane m depends only on the seed, m and its own counters. So the batches are the same whether one process serves all
lanes or several share them, and a resumed run continues with the next document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
import torch

from ..config import DataConfig, check_divisible
from ..errors import UserError
from ..tokenizers.base import collate_media
from ..types import Document, MediaBatch, PackedBatch
from .packing import DocumentEncoder, Packer

_POSTERIOR_SEED = 0x0A7E57
"""Makes the seed of the draws from posteriors differ from that of the diffusion noise, which is the batch's own."""
_CHANCES = 1024
"""Uniform numbers drawn at a time."""


class Orders:
    """Random orders of the items of each source, one per epoch, seeded by (seed, source, epoch).

    The last two orders of each source are kept, and all lanes of a process share them: an order of a million documents
    takes 4 MB.
    """

    def __init__(self, seed: int, sizes: Sequence[int]):
        self.seed, self.sizes = seed, sizes
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, source: int, epoch: int) -> np.ndarray:
        """Item numbers of `source` in the order of `epoch`, (number of items,)."""
        order = self._known.get((source, epoch))
        if order is None:
            size = self.sizes[source]
            order = np.random.default_rng((self.seed, source, epoch)).permutation(size)
            order = order.astype(np.int32 if size < 2**31 else np.int64)
            kept = {key: known for key, known in self._known.items() if key[0] != source or key[1] == epoch - 1}
            self._known = kept | {(source, epoch): order}
        return order


class Mixture:
    """The items of one lane: each comes from the source whose share of the items is furthest below its weight.

    Each source is shuffled in every epoch; of M lanes, lane m takes the items m, m + M, m + 2M … of that order.
    """

    def __init__(
        self,
        sources: Sequence[Sequence],
        weights: Sequence[float],
        seed: int,
        lane: int,
        num_lanes: int,
        orders: Orders | None = None,
    ):
        empty = [number for number, source in enumerate(sources) if len(source) == 0]
        if empty:
            raise UserError(f"data source number {empty[0]} is empty")
        self.sources = sources
        self.weights = np.asarray(weights, np.float64) / sum(weights)
        self.seed, self.lane, self.num_lanes = seed, lane, num_lanes
        self.phase = np.random.default_rng((seed, lane)).uniform(size=len(sources))
        self.counts = [0] * len(sources)
        self._orders = orders or Orders(seed, [len(source) for source in sources])
        self._chances: tuple[int, np.ndarray | None] = (-1, None)

    @property
    def index(self) -> int:
        """Number of items taken so far."""
        return sum(self.counts)

    def copy(self) -> Mixture:
        """An independent copy at the same position."""
        copied = copy(self)
        copied.counts = list(self.counts)
        return copied

    def peek(self) -> tuple[int, int]:
        """The next item as (source, item number), without taking it."""
        lag = self.weights * (self.index + 1) + self.phase - self.counts
        source = int(lag.argmax())
        epoch, place = divmod(self.counts[source] * self.num_lanes + self.lane, self._orders.sizes[source])
        return source, int(self._orders(source, epoch)[place])

    def take(self, source: int) -> None:
        """Move past the item that `peek` found in `source`."""
        self.counts[source] += 1

    def chance(self) -> float:
        """A random number in [0, 1) for the next item. It depends on seed and position: a resumed run repeats it."""
        block, place = divmod(self.index, _CHANCES)
        if self._chances[0] != block:
            self._chances = (block, np.random.default_rng((self.seed, self.lane, block, 1)).uniform(size=_CHANCES))
        return self._chances[1][place]


class Lanes:
    """Base of both loaders: the lanes of this process and their resumable state."""

    def __init__(
        self,
        sources: Sequence[Sequence],
        weights: Sequence[float],
        *,
        seed: int,
        num_lanes: int,
        rank: int,
        world: int,
    ):
        check_divisible(num_lanes, world)
        self.sources = sources
        self.seed = seed
        self.num_lanes = num_lanes
        self.sizes = [len(source) for source in sources]
        orders = Orders(seed, self.sizes)
        mine = range(rank, num_lanes, world)
        self.lanes = {m: Mixture(sources, weights, seed, m, num_lanes, orders) for m in mine}
        self.step = 0

    def next_step(self) -> list:
        """This process's micro-batches of the next step."""
        batches = [self.batch(m, mixture, self.step) for m, mixture in self.lanes.items()]
        self.step += 1
        return batches

    def state_dict(self) -> dict:
        lanes = {str(m): list(mixture.counts) for m, mixture in self.lanes.items()}
        return {"step": self.step, "lanes": lanes, "sizes": list(self.sizes)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved position, the union of the states of all processes.

        Raises UserError if the number of lanes, of sources, or of items of a source differs: orders depend on it.
        """
        saved_lanes = state["lanes"] if "lanes" in state else state["streams"]  # their name in an older release
        for m, mixture in self.lanes.items():
            counts = saved_lanes.get(str(m))
            if counts is None or len(counts) != len(mixture.counts):
                raise UserError(f"saved data position has no lane {m} over {len(mixture.counts)} sources")
            mixture.counts = list(counts)
        saved = state.get("sizes", self.sizes)  # an older release did not save them
        for number, (now, then) in enumerate(zip(self.sizes, saved, strict=True)):
            if now != then:
                raise UserError(f"data source number {number} changed: {now} items, the checkpoint had {then}")
        self.step = state["step"]

    def close(self) -> None:
        """Does nothing: batches are made on demand, without workers."""

    def noise_seed(self, lane: int, step: int) -> int:
        return int(np.random.SeedSequence((self.seed, step, lane)).generate_state(1, np.uint64)[0]) >> 1

    def batch(self, lane: int, mixture: Mixture, step: int):
        """The micro-batch of `lane` in `step`, made from the next items of `mixture`; advances `mixture`."""
        raise AssertionError("abstract")


class DocumentLoader(Lanes):
    """Packed batches of documents. The media of the documents in `sources` must be latents already."""

    def __init__(
        self,
        sources: Sequence[Sequence[Document]],
        config: DataConfig,
        encoder: DocumentEncoder,
        latent_dims: dict[str, int],
        *,
        seed: int,
        num_lanes: int,
        rank: int = 0,
        world: int = 1,
    ):
        weights = [source.weight for source in config.sources]
        super().__init__(sources, weights, seed=seed, num_lanes=num_lanes, rank=rank, world=world)
        self.config = config
        self.encoder = encoder
        self.latent_dims = latent_dims

    def batch(self, lane: int, mixture: Mixture, step: int) -> PackedBatch:
        packer = Packer(self.config.rows, self.config.sequence_length, self.latent_dims, self.encoder.special.eos)
        while True:
            source, item = mixture.peek()
            document = self.sources[source][item]
            dropped = _has_condition_for_latents(document) and mixture.chance() < self.config.condition_dropout
            if not packer.add(self.encoder(document, unconditional=dropped)):
                break
            mixture.take(source)
        seed = self.noise_seed(lane, step)
        posterior = torch.Generator().manual_seed(seed ^ _POSTERIOR_SEED)
        return packer.batch(posterior, seed)


def _has_condition_for_latents(document: Document) -> bool:
    conditions = any(segment.condition for segment in document.segments)
    return conditions and any(s.modality != "text" and not s.condition for s in document.segments)


class MediaLoader(Lanes):
    """Batches of media for training a tokenizer.

    prepare: (medium, random generator) -> one example, a tensor; examples are padded to the longest of their batch.
    """

    def __init__(
        self,
        sources: Sequence[Sequence],
        weights: Sequence[float],
        prepare: Callable[[object, np.random.Generator], torch.Tensor],
        *,
        batch_size: int,
        seed: int,
        num_lanes: int,
        rank: int = 0,
        world: int = 1,
    ):
        super().__init__(sources, weights, seed=seed, num_lanes=num_lanes, rank=rank, world=world)
        self.prepare = prepare
        self.batch_size = batch_size

    def batch(self, lane: int, mixture: Mixture, step: int) -> MediaBatch:
        seed = self.noise_seed(lane, step)
        rng = np.random.default_rng(seed)
        examples = []
        for _ in range(self.batch_size):
            source, item = mixture.peek()
            mixture.take(source)
            examples.append(self.prepare(self.sources[source][item], rng))
        return collate_media(examples, seed)

    def skip(self, steps: int = 1) -> None:
        """Move on by `steps` steps without reading their media."""
        for mixture in self.lanes.values():
            for _ in range(steps * self.batch_size):
                mixture.take(mixture.peek()[0])
        self.step += steps
