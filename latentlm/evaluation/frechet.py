"""Fréchet distance between sets of pictures, and what real pictures reach against each other.

Place in the flow: features of a judge ──▶ `image.py`, `drawn.py`.
FD(N(m, S), N(m', S')) = ‖m − m'‖² + Tr(S + S' − 2 (S S')^½). Its bias depends on the number of pictures, so all sets
that are compared have equal sizes and equal shares of the classes.
Legend: `B` pictures, `F` features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance between two sets of features (B, F), as normal distributions, in float64."""
    first, second = first.double(), second.double()
    mean_gap = (first.mean(0) - second.mean(0)).square().sum()
    cov, other = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T  # S^½, so that S^½ S' S^½ is symmetric
    product = torch.linalg.eigvalsh(root @ other @ root).clamp_min(0)
    return float(mean_gap + cov.trace() + other.trace() - 2 * product.sqrt().sum())


@dataclass(frozen=True)
class FrechetComparison:
    """Generated against real, and real against real: means and standard deviations over draws of `size` pictures."""

    distance: float
    deviation: float
    real_distance: float
    real_deviation: float
    size: int
    num_draws: int

    @property
    def ratio(self) -> float:
        return self.distance / self.real_distance


def compare_balanced(
    features: Tensor, labels: Tensor, real_features: Tensor, real_labels: Tensor, num_draws: int = 40, seed: int = 0
) -> FrechetComparison:
    """Generated features (B, F) against real ones (B', F), with the same number of each class in every set.

    Each draw cuts the real pictures, class by class, into disjoint halves, compares these with each other, and one of
    them with as many generated pictures. The number per class is the largest that all classes allow.
    Raises UserError where a class has no generated or fewer than two real pictures.
    """
    classes = range(int(real_labels.max()) + 1)
    num = min(
        *(int((labels == k).sum()) for k in classes),
        *(int((real_labels == k).sum()) // 2 for k in classes),
    )
    if num < 1:
        raise UserError("the Fréchet comparison needs every class, at least 1 generated and 2 real of each")
    generator = torch.Generator().manual_seed(seed)
    distances, real_distances = [], []
    for _ in range(num_draws):
        half, other = _balanced(real_labels, num, 2, generator)
        (drawn,) = _balanced(labels, num, 1, generator)
        distances.append(frechet_distance(features[drawn], real_features[half]))
        real_distances.append(frechet_distance(real_features[half], real_features[other]))
    found, real_found = torch.tensor(distances), torch.tensor(real_distances)
    return FrechetComparison(
        *(float(x) for x in (found.mean(), found.std(), real_found.mean(), real_found.std())),
        size=num * len(classes),
        num_draws=num_draws,
    )


def _balanced(labels: Tensor, num: int, parts: int, generator: torch.Generator) -> list[Tensor]:
    """`parts` disjoint sets of indices, each with `num` of every class."""
    chosen: list[list[Tensor]] = [[] for _ in range(parts)]
    for k in range(int(labels.max()) + 1):
        members = (labels == k).nonzero()[:, 0]
        order = members[torch.randperm(len(members), generator=generator)]
        for part in range(parts):
            chosen[part].append(order[part * num : (part + 1) * num])
    return [torch.cat(indices) for indices in chosen]
