"""The next step's batches, drawn by a thread while the current step computes.

Place in the flow: between a loader and the trainer. The position that is saved is that of the steps handed out, so a
resumed run repeats the step that was drawn ahead and not used.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Prefetcher:
    """A loader that works one step ahead of the trainer. Batches, and what the loader raises, come in their order.

    Holds one step of batches more than the loader alone. The loader is used by one thread at a time.
    """

    def __init__(self, loader):
        self.loader = loader
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: Future[list] | None = None
        self._position: dict[str, Any] | None = None  # the loader's before the step that is being drawn

    @property
    def num_streams(self) -> int:
        return self.loader.num_streams

    def next_step(self) -> list:
        """This process's micro-batches of the next step."""
        drawing, self._ahead = self._ahead or self._worker.submit(self.loader.next_step), None
        batches = drawing.result()
        self._position = self.loader.state_dict()
        self._ahead = self._worker.submit(self.loader.next_step)
        return batches

    def state_dict(self) -> dict[str, Any]:
        """The position after the last step handed out."""
        return self.loader.state_dict() if self._ahead is None else self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; what was drawn ahead is dropped."""
        if self._ahead is not None:
            self._ahead.exception()  # waits; whatever it drew or raised does not count
            self._ahead = None
        self.loader.load_state_dict(state)
