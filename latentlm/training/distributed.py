"""Processes: rank and world size, sums over ranks, starting and ending several processes.

Place in the flow: 5, below the trainer; one process needs nothing from here but `World()`. Under torchrun every process
calls `start()` first and `finish()` last; `launch` starts several processes on this machine in the same way.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..hardware import choose_device, num_cores

Result = TypeVar("Result")

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others: long enough for rank 0 to encode a data set or to write samples alone."""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`; `local_rank` of `local_size` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` (any shape, equal on all ranks) over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Run `action` on rank 0 and return its result on all ranks; its OSError or ValueError is raised on all."""
        if self.size == 1:
            return action()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = action()
            except (OSError, ValueError) as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        return box[0]


def start(device: str | None = None) -> World:
    """Join the process group that torchrun describes in the environment, or return the World of a single process.

    device: "cpu", "cuda" (each process takes the GPU of its local rank) or None, which is CUDA if available. Raises
    UserError if there is no GPU for this process.
    """
    environment = {name: int(os.environ.get(name, fallback)) for name, fallback in _TORCHRUN}
    kind = choose_device(device or "auto").type
    if kind == "cuda" and environment["LOCAL_RANK"] >= (count := torch.cuda.device_count()):
        raise UserError(
            f"{environment['LOCAL_WORLD_SIZE']} processes on this machine, but torch sees only {count} CUDA "
            f"device{'s' * (count > 1)}: each process needs its own"
        )
    chosen = torch.device(kind, environment["LOCAL_RANK"]) if kind == "cuda" else torch.device(kind)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    world = World(
        environment["RANK"],
        environment["WORLD_SIZE"],
        environment["LOCAL_RANK"],
        environment["LOCAL_WORLD_SIZE"],
        chosen,
    )
    if world.size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return world


_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))


def finish(world: World, code: int = 0) -> None:
    """Leave the process group. With several processes this ends the process, so call it last.

    After a distributed checkpoint, gloo's threads can abort the exit of the interpreter, which would make a finished
    training look failed. So the process flushes its output and exits at once.
    """
    if world.size == 1:
        return
    if code == 0:
        dist.barrier()
        dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def default_processes(most: int = 2) -> int:
    """Default number of processes: one per core, at most `most`, and with GPUs at most their number."""
    places = min(num_cores(), torch.cuda.device_count()) if torch.cuda.is_available() else num_cores()
    return max(1, min(most, places))


def launch(num_processes: int, argv: Sequence[str], **popen: Any) -> int:
    """Run `argv` (a script or `-m module`, and its arguments) as `num_processes` on this machine; return the exit code.

    Every process gets the environment that torchrun would give it, and takes its share of the cores unless
    OMP_NUM_THREADS is set. When a process fails, the others are ended and its exit code is returned; if a signal ended
    it (out of memory: SIGKILL), a line says so and the code is 128 + its number. Only rank 0 writes to the terminal;
    the output of another rank is shown if that rank fails first. The first Ctrl-C or SIGTERM is passed to each process
    as SIGTERM, on which it saves and exits; the second one kills them. Raises UserError for fewer than one process.
    Example: `launch(2, ["-m", "latentlm", "train", "demo"])`.
    """
    if num_processes < 1:
        raise UserError(f"processes must be at least 1, got {num_processes}")
    environment = dict(popen.pop("env", os.environ))
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    size = str(num_processes)
    with ExitStack() as stack:
        processes, outputs = [], []
        alive, mine_alone = os.pipe()  # mine_alone closes when this process ends, see `follow_launcher`
        stack.callback(os.close, alive)
        stack.callback(os.close, mine_alone)
        stack.callback(_kill, processes)
        for rank in range(num_processes):
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            output = None if rank == 0 else stack.enter_context(tempfile.TemporaryFile())
            streams = popen | {"stdin": alive} | ({} if rank == 0 else {"stdout": output, "stderr": output})
            command = [sys.executable, "-u", *argv]
            process = subprocess.Popen(command, env=environment | mine, start_new_session=True, **streams)
            processes.append(process)
            outputs.append(output)
        stack.enter_context(on_signals((signal.SIGTERM,), lambda number: sys.exit(128 + number)))  # the second signal
        stack.enter_context(on_signals((signal.SIGINT, signal.SIGTERM), lambda number: _end(processes)))
        failed = _wait(processes)
        if failed and processes[0].returncode in (0, -signal.SIGTERM):  # rank 0 has not printed the reason
            outputs[failed].seek(0)
            sys.stderr.write(outputs[failed].read().decode(errors="replace"))
        code = 0 if failed is None else processes[failed].returncode
        if code < 0:
            name = signal.Signals(-code).name
            print(f"latentlm: process {failed} was ended by signal {-code} ({name})", file=sys.stderr, flush=True)
        return code if code >= 0 else 128 - code


def follow_launcher() -> None:
    """End this process when its launcher ends, even by SIGKILL, which releases the lock on the run folder."""

    def watch() -> None:
        os.read(0, 1)  # returns when the other end is closed; nothing is sent
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _wait(processes: list[subprocess.Popen]) -> int | None:
    """Wait until all have ended, and end them if one fails; return the rank of the first that failed, or None."""
    failed = None
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = _failed(processes)
            if failed is not None:
                _end(processes)
        time.sleep(0.05)
    return _failed(processes) if failed is None else failed


def _failed(processes: list[subprocess.Popen]) -> int | None:
    """A rank that failed, or None; one ended by a signal is preferred, since others may have failed because of it."""
    ranks = [rank for rank, process in enumerate(processes) if process.poll()]
    return min(ranks, key=lambda rank: processes[rank].returncode, default=None)


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


def _kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def on_signals(numbers: Sequence[int], react: Callable[[int], None]) -> Iterator[None]:
    """Context manager: the first of each of these signals calls `react`; a second one is handled as before.

    Does nothing outside the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: object) -> None:
        signal.signal(number, previous[number])
        react(number)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class NamedSum:
    """Sums named numbers over the ranks, which need not have the same names, with one all-reduce per call.

    All ranks keep the same list of known names. A rank with a new name sets a flag in the sum, and then all ranks
    exchange their names once.
    """

    def __init__(self, world: World):
        self.world = world
        self.names: list[str] = []

    def __call__(self, values: Mapping[str, float]) -> dict[str, float]:
        if self.world.size == 1:
            return dict(values)
        totals = self._sum(values)
        if totals[-1] > 0:
            offered = self.world.gather(sorted(values))
            self.names = sorted(set(self.names).union(*offered))
            totals = self._sum(values)
        return dict(zip(self.names, totals[:-1], strict=True))

    def _sum(self, values: Mapping[str, float]) -> list[float]:
        news = float(any(name not in self.names for name in values))
        vector = [float(values.get(name, 0.0)) for name in self.names]
        return self.world.sum(torch.tensor([*vector, news], dtype=torch.float64)).tolist()
