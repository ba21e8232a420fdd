"""Means over documents and their standard errors.

Place in the flow: scores of single documents ──▶ `losses.py`, `documents.py`, `spoken.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """A mean per element and its standard error; None for fewer than two documents, and where all have one value."""

    value: float
    standard_error: float | None


def mean_per_element(sums: Sequence[float], counts: Sequence[float]) -> Mean:
    """Σ sums / Σ counts over documents: each has a sum over its elements and their number, at least one in all.

    The standard error is that of a ratio of means (linearised), with documents as independent samples: elements of one
    document are not.
    """
    total, number = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    value = total.sum() / number.sum()
    if len(total) < 2:
        return Mean(float(value), None)
    if np.all(total == value * number):
        return Mean(float(value), None)  # no spread was seen, which does not mean that there is none
    squares = np.square(total - value * number).sum() * len(total) / (len(total) - 1)
    return Mean(float(value), float(np.sqrt(squares) / number.sum()))
