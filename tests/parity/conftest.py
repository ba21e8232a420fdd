"""What parity tests leave behind: one line a module, printed at the end of the session.

A test calls `agree(module, ours, theirs, tolerance)`: the largest difference is kept, then held against the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

import pytest
import torch

PROPERTY = "parity"


@dataclass(frozen=True)
class Parity:
    """`difference` is the largest absolute one or, if `relative`, that over the largest entry of the reference;
    `reference` names what was compared with, and its version.
    """

    module: str
    difference: float
    tolerance: float
    relative: bool
    reference: str

    @property
    def limit(self) -> str:
        return f"{self.tolerance:.0e} {'rel' if self.relative else 'abs'}"


@pytest.fixture
def agree(request: pytest.FixtureRequest) -> Callable[..., None]:
    def check(
        module: str,
        ours: torch.Tensor,
        theirs: torch.Tensor,
        tolerance: float,
        reference: str | None = None,
        *,
        relative: bool = False,
    ) -> None:
        assert ours.shape == theirs.shape, f"{module}: {tuple(ours.shape)}, theirs {tuple(theirs.shape)}"
        assert theirs.isfinite().all(), f"{module}: the reference is not finite"
        ours, theirs = ours.detach().double(), theirs.detach().double()
        difference = float((ours - theirs).abs().max())
        if relative:
            difference /= float(theirs.abs().max())
        row = Parity(module, difference, tolerance, relative, reference or f"transformers {version('transformers')}")
        request.node.user_properties.append((PROPERTY, asdict(row)))  # travels with the report, also between processes
        assert difference <= tolerance, f"{module} is {difference:.3g} from {row.reference}, tolerance {row.limit}"

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, []) if r.when == "call"]
    rows = [Parity(**value) for r in reports for name, value in r.user_properties if name == PROPERTY]
    if not rows:
        return
    groups: dict[tuple[str, str, str], list[Parity]] = {}
    for row in rows:
        groups.setdefault((row.module, row.limit, row.reference), []).append(row)
    width = max(len(module) for module, _, _ in groups)
    terminalreporter.section("parity")
    terminalreporter.line(f"{'module':<{width}}  {'tolerance':>9}  {'largest':>7}  {'cases':>5}  reference")
    for (module, limit, reference), cases in sorted(groups.items()):
        worst = max(cases, key=lambda row: row.difference)
        terminalreporter.line(
            f"{module:<{width}}  {limit:>9}  {worst.difference:>7.1e}  {len(cases):>5}  {reference}",
            red=not worst.difference <= worst.tolerance,
        )
