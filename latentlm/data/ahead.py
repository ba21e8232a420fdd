"""Batches made ahead of the step that needs them: by threads for documents, by processes for media.

Place in the flow: 2, between a loader and the trainer, which uses these classes like a loader. The saved state is the
position after the last batch that the trainer took, so a resumed run continues with the next document, with any number
of workers.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..types import MediaBatch, PackedBatch
from .loader import DocumentLoader, MediaLoader, Mixture
from .processes import Worker

DEPTH = 2
"""Steps whose batches are made in advance."""


class _PrefetchingLoader:
    """Base of both classes: advances a loader, and measures how long the trainer waits for batches."""

    def __init__(self, loader: DocumentLoader | MediaLoader, pin: bool):
        self.loader, self.pin = loader, pin
        self.num_lanes = loader.num_lanes
        self.waited = 0.0
        """Total seconds spent in `next_step`."""

    def next_step(self) -> list:
        """This process's micro-batches of the next step. Raises the errors that occurred while they were made."""
        started = time.perf_counter()
        batches = self._take()
        self.waited += time.perf_counter() - started
        return batches

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position; batches made in advance are discarded."""
        self.close()
        self.loader.load_state_dict(state)

    def _take(self) -> list:
        raise AssertionError("abstract")

    def close(self) -> None:
        raise AssertionError("abstract")


class DocumentsAhead(_PrefetchingLoader):
    """A DocumentLoader whose lanes are divided among `threads` threads.

    pin: put batches into pinned memory, from which a GPU copies while it computes.
    """

    def __init__(self, loader: DocumentLoader, threads: int = 1, pin: bool = False):
        super().__init__(loader, pin)
        lanes = list(loader.lanes)
        self._shares = [share for share in (lanes[i::threads] for i in range(threads)) if share]
        self._lines: list[_Prefetcher] = []

    def _take(self) -> list[PackedBatch]:
        if not self._lines:
            for share in self._shares:
                mine = {lane: self.loader.lanes[lane].copy() for lane in share}
                self._lines.append(_Prefetcher(partial(self._made, mine), self.loader.step))
        made: dict[int, tuple[PackedBatch, list[int]]] = {}
        for line in self._lines:
            made |= line.take()
        for lane, (_, counts) in made.items():
            self.loader.lanes[lane].counts = counts
        self.loader.step += 1
        return [made[lane][0] for lane in self.loader.lanes]

    def close(self) -> None:
        """End the threads."""
        for line in self._lines:
            line.stop()
        self._lines = []

    def _made(self, mixtures: dict[int, Mixture], step: int) -> dict[int, tuple[PackedBatch, list[int]]]:
        """By lane, the batch of `step` and the counters after it. `mixtures` are the thread's copies; the loader's own
        stay at the batches that the trainer has taken."""
        made = {}
        for lane, mixture in mixtures.items():
            batch = self.loader.batch(lane, mixture, step)
            made[lane] = (batch.pin_memory() if self.pin else batch, list(mixture.counts))
        return made


class MediaAhead(_PrefetchingLoader):
    """A MediaLoader whose steps are divided among `workers` processes, each with a loader of its own.

    open_loader: "module:function", which makes such a loader; `arguments` are pickled.
    """

    def __init__(self, loader: MediaLoader, workers: int, open_loader: str, *arguments: Any, pin: bool = False):
        super().__init__(loader, pin)
        self.workers = workers
        self._open = (open_loader, arguments)
        self._processes: list[Worker] = []
        self._line: _Prefetcher | None = None

    def _take(self) -> list[MediaBatch]:
        if self._line is None:
            state = self.state_dict()
            for number in range(self.workers):
                worker = Worker("latentlm.data.ahead:work", *self._open, state, number, self.workers)
                self._processes.append(worker)
            self._line = _Prefetcher(self._receive, self.loader.step)
        batches = self._line.take()
        self.loader.skip()
        return batches

    def close(self) -> None:
        """End the processes."""
        for worker in self._processes:
            worker.process.kill()
        if self._line is not None:
            self._line.stop()  # its thread may still be reading from a process, and gets WorkerEnded
        for worker in self._processes:
            worker.stop()
        self._processes, self._line = [], None

    def _receive(self, step: int) -> list[MediaBatch]:
        kind, value = self._processes[step % self.workers].receive()
        if kind == "refused":
            raise UserError(value)
        batches = [MediaBatch(*(torch.from_numpy(array) for array in arrays), seed) for *arrays, seed in value]
        return [batch.pin_memory() for batch in batches] if self.pin else batches


def work(
    connection: Connection, open_loader: str, arguments: tuple, state: dict[str, Any], number: int, workers: int
) -> None:
    """Main function of a process: sends the batches of steps `number`, number + workers, … after `state`, as arrays."""
    torch.set_num_threads(1)
    module, _, name = open_loader.partition(":")
    try:
        loader: MediaLoader = getattr(importlib.import_module(module), name)(*arguments)
        loader.load_state_dict(state)
        loader.skip((number - loader.step) % workers)
        while True:
            batches = loader.next_step()
            connection.send(("made", [_arrays(batch) for batch in batches]))
            loader.skip(workers - 1)
    except BrokenPipeError:
        raise  # the main process has gone
    except (UserError, OSError) as error:
        connection.send(("refused", str(error)))


def _arrays(batch: MediaBatch) -> tuple[np.ndarray, np.ndarray, int]:
    return batch.media.numpy(), batch.lengths.numpy(), batch.seed


class _Prefetcher:
    """A thread that calls `make(step)` for each step in order, DEPTH steps ahead of `take`."""

    def __init__(self, make: Callable[[int], Any], step: int):
        self._make, self._step = make, step
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ready: deque[Future] = deque()
        for _ in range(DEPTH):
            self._ask()

    def take(self) -> Any:
        """The result for the next step; raises the error of `make`."""
        made = self._ready.popleft().result()
        self._ask()
        return made

    def stop(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _ask(self) -> None:
        self._ready.append(self._thread.submit(self._make, self._step))
        self._step += 1
