"""How far the figures that tests hold against bounds stay from them, over seeds and environments.

    python tests/measure_margins.py                       5 seeds in each of 3 environments
    python tests/measure_margins.py --write               and put the table into docs/testing.md
    python tests/measure_margins.py --tests tests/evaluation --seeds 10 --figures FILE
                                                          in parts: FILE keeps what was measured, for the next part

Every test that takes the fixture `margin` runs once per seed and environment. Exit code 1 where a figure's room, the
distance from its bound to the worst value, is smaller than the range of what was measured, or than ROOM of the bound,
or where a run failed without stating a figure.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from margins import FILE, SEED, Figure, read

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "testing.md"
PLACE = re.compile(r"(?<=<!-- margins -->\n).*?(?=<!-- end of margins -->)", re.DOTALL)
ROOM = 0.05
"""The least distance from a bound, as a share of it."""
NO_AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
ENVIRONMENTS = {
    "default": {},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "no AVX-512": NO_AVX512,
}
"""What limits the instructions of oneDNN, of torch's own kernels and of MKL."""


@dataclass(frozen=True)
class Margin:
    """All values of one figure of one test; the bound is that of the last."""

    figures: tuple[Figure, ...]

    @property
    def values(self) -> list[float]:
        return [figure.value for figure in self.figures]

    @property
    def worst(self) -> float:
        return max(self.values) if self.figures[-1].at_most else min(self.values)

    @property
    def spread(self) -> float:
        """Largest less smallest value."""
        return max(self.values) - min(self.values)

    @property
    def room(self) -> float:
        """Distance from the bound to the worst value; negative where it is beyond."""
        bound = self.figures[-1].bound
        return bound - self.worst if self.figures[-1].at_most else self.worst - bound

    @property
    def is_wide(self) -> bool:
        return self.room >= max(self.spread, ROOM * abs(self.figures[-1].bound)) > 0

    def row(self) -> str:
        """Returns the line of the table."""
        first = self.figures[-1]
        test = first.test.removeprefix("tests/").replace("|", "\\|")
        bound = f"{'≤' if first.at_most else '≥'} {first.bound:.4g}"
        ranges = f"{self.room / self.spread:.1f}" if self.spread else "does not vary"
        figures = f"{bound} | {statistics.median(self.values):.4g} | {self.worst:.4g} | {self.spread:.2g}"
        mark = "" if self.is_wide else " **too near**"
        return f"| `{test}` | {first.name} | {len(self.figures)} | {figures} | {ranges}{mark} |"


def grouped(figures: Iterable[Figure]) -> list[Margin]:
    """Returns one Margin per test, name and side of the bound, in the order of the tests."""
    groups: dict[tuple[str, str, bool], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.test, figure.name, figure.at_most), []).append(figure)
    return [Margin(tuple(groups[key])) for key in sorted(groups)]


def table(margins: list[Margin]) -> str:
    head = "| test | figure | values | bound | median | worst | range | room in ranges |\n" + "|---" * 8 + "|\n"
    return head + "\n".join(margin.row() for margin in margins) + "\n"


def run(arguments: list[str], seed: int, environment: dict[str, str], file: Path) -> str:
    """Run the tests once, which append their figures to `file`; returns what pytest said where one failed without."""
    before = len(read(file))
    variables = {"OMP_NUM_THREADS": "1", FILE: str(file), SEED: str(seed)} | environment
    command = [sys.executable, "-m", "pytest", "-m", "margin", "-q", "--tb=short", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    figures = read(file)[before:]
    failed = set(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE))
    silent = failed - {figure.test for figure in figures if not figure.holds}
    broken = silent or done.returncode not in (0, 1)  # 1: a test failed, by its figure
    return done.stdout + done.stderr if broken else ""


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    instructions = "with AVX-512" if any("avx512f" in line for line in lines) else "without AVX-512"
    return f"{names[0] if names else platform.machine()} ({instructions})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders")
    parser.add_argument("--figures", type=Path, help="keep figures in this file; those in it count as well")
    parser.add_argument("--workers", default="2", help="processes of pytest-xdist")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    arguments = ["-n", options.workers, "--dist", "loadfile", *options.tests]
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        file = (options.figures or Path(folder) / "figures.jsonl").absolute()
        for name in options.environments:
            for seed in range(options.seeds):
                said = run(arguments, seed, ENVIRONMENTS[name], file)
                broken |= bool(said)
                print(f"{name}, seed {seed}: {len(read(file))} figures so far", said, file=sys.stderr, flush=True)
        margins = grouped(read(file))
    import torch

    today, environments = datetime.date.today(), ", ".join(f"`{name}`" for name in options.environments)
    measured = f"Measured on {today}: {processor()}, torch {torch.__version__}, seeds 0 to {options.seeds - 1}, "
    text = f"{measured}environments {environments}.\n\n{table(margins)}"
    print(text)
    if options.write:
        PAGE.write_text(PLACE.sub(lambda _: text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    near = [margin for margin in margins if not margin.is_wide]
    print(f"{len(margins)} figures, {len(near)} too near their bounds")
    return int(bool(near) or broken)


if __name__ == "__main__":
    sys.exit(main())
