"""Encoding on a Ray cluster: Ray Data gives parts to actors, and gives them again if an actor dies.

Place in the flow: 2, `encode(engine="ray")`. All nodes need access to the sources, the tokenizers and the folder of the
shards, on a shared disk or by fsspec URLs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ..progress import Progress
from .parts import PartEncoder
from .plan import Job, Part

RETRIES = 3
"""How often the actor of a part may die before the encoding fails."""


class PartActor:
    """Encodes the part that a row describes; returns {"read": number of documents, "refused": error or ""}."""

    def __init__(self, job: Job):
        torch.set_num_threads(job.threads)
        self._encoder = PartEncoder(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(**{name: int(row[name]) for name in Part.model_fields})
        try:
            self._encoder(part)
        except (UserError, OSError) as error:
            return {"read": 0, "refused": str(error)}
        return {"read": part.stop - part.start, "refused": ""}


def _absolute(job: Job) -> Job:
    """`job` with absolute paths, since an actor may run in another folder."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).absolute())

    sources = tuple(
        config.model_copy(update={key: absolute(getattr(config, key)) for key in ("path", "manifest")})
        for config in job.sources
    )
    tokenizers = {name: absolute(folder) for name, folder in job.tokenizers.items()}
    return replace(job, sources=sources, tokenizers=tokenizers, out=absolute(job.out))


def encode_parts(job: Job, parts: Sequence[Part], workers: int, progress: Progress) -> None:
    """Encode `parts` by `workers` actors, on the cluster that RAY_ADDRESS names or on this machine.

    Raises UserError if Ray is not installed, and the UserErrors of the actors.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("engine ray needs Ray: pip install 'ray[data]'") from None
    started = not ray.is_initialized()
    if started:
        here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        sent = _absolute(job)
        rows = ray.data.from_items([part.model_dump() for part in parts], override_num_blocks=len(parts))
        done = rows.map(
            PartActor,
            fn_constructor_args=(sent,),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        for row in done.iter_rows():
            if row["refused"]:
                raise UserError(row["refused"])
            progress.add(int(row["read"]))
    finally:
        if started:
            ray.shutdown()
