"""How long OpenMP's waiting threads spin; chosen before torch loads its OpenMP library, which reads it once.

Place in the flow: below everything, called by `import latentlm`. On an idle machine, spinning saves the time to wake a
thread; beside busy neighbours, a spinning thread takes the core of the one that it waits for (docs/performance.md).
"""

from __future__ import annotations

import os
import sys
import time

SPIN_COUNT = "20000"
"""Rounds of spinning on an idle machine; some tens of microseconds."""


def choose_spinning() -> None:
    """Set GOMP_SPINCOUNT and KMP_BLOCKTIME, unless they or OMP_WAIT_POLICY are set or torch is loaded already."""
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "0" if has_neighbours() else SPIN_COUNT)
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def has_neighbours(samples: int = 5, seconds: float = 0.001) -> bool:
    """Whether another thread of the machine runs at each of `samples` moments. False without /proc/loadavg."""
    for _ in range(samples):
        try:
            with open("/proc/loadavg", encoding="ascii") as file:
                running = int(file.read().split()[3].split("/")[0])
        except OSError:
            return False
        if running <= 1:  # this one
            return False
        time.sleep(seconds)
    return True
