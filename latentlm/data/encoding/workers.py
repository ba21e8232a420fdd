"""`encode`: a job ──▶ shards, in this process, in several, or on a Ray cluster.

Place in the flow: 2, above `parts.py`. Each worker opens sources and tokenizers itself and encodes one part at a time.
If a worker dies, only its part is lost: the same command continues with the missing parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

from ...errors import UserError
from ..processes import Worker, WorkerEnded
from ..progress import Progress
from .parts import PartEncoder, Summary, finish, load_tokenizers
from .plan import Job, Part, begin, make_plan

Engine = Literal["local", "ray"]


def encode(
    job: Job,
    *,
    processes: int = 1,
    engine: Engine = "local",
    tokenizers: dict[str, Any] | None = None,
    wait: bool = False,
) -> Summary:
    """Encode the parts that `job.out` does not hold yet, and write the index.

    tokenizers: those of the job, if they are loaded already; with one process they are used on their device.
    wait: whether to wait for another encoding into the same folder, instead of refusing.
    Raises UserError for sources, documents or a folder that cannot be used; a second call continues.
    """
    loaded = load_tokenizers(job.tokenizers) if tokenizers is None else tokenizers
    with _locked(job, wait):
        plan = make_plan(job, loaded)
        missing = begin(job.folder, plan)
        total = sum(source["num_documents"] for source in plan["sources"])
        done = total - sum(part.stop - part.start for part in missing)
        with Progress("encoding", "documents", total, done) as progress:
            if not missing:
                pass
            elif engine == "ray":
                from .on_ray import encode_parts

                encode_parts(job, missing, processes, progress)
            elif processes == 1:
                encoder = PartEncoder(job, loaded)
                for part in missing:
                    encoder(part, progress.add)
            else:
                _in_processes(job, missing, min(processes, len(missing)), progress)
        return finish(job, plan, loaded, done)


@contextmanager
def _locked(job: Job, wait: bool) -> Iterator[None]:
    """Context manager: holds the lock of the shards' folder. If it is taken, waits (`wait`) or raises UserError."""
    folder = job.folder
    if folder.scheme != "file":
        yield
        return
    from filelock import FileLock, Timeout

    folder.system.makedirs(folder.path, exist_ok=True)
    lock = FileLock(f"{folder.path.rstrip('/')}/.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(f"{folder}: another encoding is writing here; wait for its end") from None
        print(f"{folder}: another run encodes the same data; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ------------------------------------------------------------------ processes


def _in_processes(job: Job, parts: Sequence[Part], num: int, progress: Progress) -> None:
    """Encode `parts` in `num` processes. Raises the UserErrors of the workers, and UserError if one is killed."""
    waiting = iter(parts)
    workers: dict[Connection, Worker] = {}
    try:
        for _ in range(num):
            worker = Worker("latentlm.data.encoding.workers:work", job)
            workers[worker.connection] = worker
            worker.send(next(waiting))
        busy = set(workers)
        while busy:
            for connection in connections.wait(list(busy)):
                kind, value = _listen(workers[connection])
                if kind == "read":
                    progress.add(value)
                elif (part := next(waiting, None)) is None:
                    busy.remove(connection)
                else:
                    workers[connection].send(part)
    finally:
        for worker in workers.values():
            worker.stop()


def _listen(worker: Worker) -> tuple[str, int]:
    """The next message of a worker: ("read", number of documents) or ("done", part number)."""
    try:
        kind, value = worker.receive()
    except WorkerEnded as error:
        raise UserError(f"{error}; the same command continues with the missing parts") from None
    if kind == "refused":
        raise UserError(value)
    return kind, value


def work(connection: Connection, job: Job) -> None:
    """Main function of a worker: receives parts, sends ("read", number), ("done", part number), ("refused", error)."""
    torch.set_num_threads(job.threads)
    try:
        encoder = PartEncoder(job)
        while True:
            part = connection.recv()
            encoder(part, lambda number: connection.send(("read", number)))
            connection.send(("done", part.number))
    except BrokenPipeError:
        raise  # the main process has gone
    except (UserError, OSError) as error:
        connection.send(("refused", str(error)))
