"""Figures that tests hold against a bound, written down so that their distance from it can be measured.

A test whose figure is learnt, clocked or rounded takes the fixture `margin` of conftest.py and states name, value and
bound; its random numbers begin at `seed()`. measure_margins.py runs these tests over seeds and environments, and says
where a bound is too near (docs/testing.md).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

SEED = "LATENTLM_TEST_SEED"
"""Environment variable: a whole number that moves the seed of every test that states a figure."""
FILE = "LATENTLM_TEST_MARGINS"
"""Environment variable: a file to which every figure is appended, one JSON object per line."""


def seed(own: int = 0) -> int:
    """Returns the seed of a test: `own`, and another one for every value of LATENTLM_TEST_SEED."""
    return own + 1000 * int(os.environ.get(SEED, "0"))


@dataclass(frozen=True)
class Figure:
    """One value of one test beside its bound, which is the largest value allowed where `at_most`, else the smallest."""

    test: str
    name: str
    value: float
    bound: float
    at_most: bool

    @property
    def holds(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.6g}, at {'most' if self.at_most else 'least'} {self.bound:g} is wanted"

    def record(self) -> None:
        """Append to the file that LATENTLM_TEST_MARGINS names, if it names one."""
        if path := os.environ.get(FILE):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")


def read(path: Path) -> list[Figure]:
    """Returns the figures of a file that tests wrote; none where no test stated one."""
    if not path.is_file():
        return []
    return [Figure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
