"""What parity tests leave behind: one line a module, printed at the end of the session.

A test calls `parity(module, difference, tolerance, reference)`: the figure is kept, then held against the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import pytest

PROPERTY = "parity"


@dataclass(frozen=True)
class Parity:
    """`difference` is the largest absolute one; `reference` names what was compared with, and its version."""

    module: str
    difference: float
    tolerance: float
    reference: str


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable[[str, float, float, str], None]:
    def record(module: str, difference: float, tolerance: float, reference: str) -> None:
        row = Parity(module, float(difference), tolerance, reference)
        request.node.user_properties.append((PROPERTY, asdict(row)))  # travels with the report, also between processes
        assert row.difference <= tolerance, f"{module} is {difference:.3g} from {reference}, tolerance {tolerance:.3g}"

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, []) if r.when == "call"]
    rows = [Parity(**value) for r in reports for name, value in r.user_properties if name == PROPERTY]
    if not rows:
        return
    groups: dict[tuple[str, float, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.module, row.tolerance, row.reference), []).append(row.difference)
    width = max(len(module) for module, _, _ in groups)
    terminalreporter.section("parity")
    terminalreporter.line(f"{'module':<{width}}  {'tolerance':>9}  {'largest':>9}  {'cases':>5}  reference")
    for (module, tolerance, reference), differences in sorted(groups.items()):
        largest = max(differences)
        terminalreporter.line(
            f"{module:<{width}}  {tolerance:>9.1e}  {largest:>9.1e}  {len(differences):>5}  {reference}",
            red=largest > tolerance,
        )
