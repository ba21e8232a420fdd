"""Compares the default number of threads with the best setting, on an idle machine and on one with every core busy.

    python benchmarks/busy.py --out busy.json        # about 20 minutes on 2 cores

Each workload runs in a fresh process: a short training of a small model and one of a larger one (tokens per second,
from the run's own log), a picture by `latentlm generate tiny` (process start to file), and a picture in Python, after
the first one. The settings take turns, so that each sees the same machine; figures are medians. "before" is the
default of torch: one thread per core, and OpenMP's threads spin while they wait.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from commands import LATENTLM, printed_seconds, run
from figures import Figure, describe, hardware, seconds_of, table, write_json

SPIN = "300000"
"""libgomp's default spin count if there is one core per thread."""
IN_PYTHON = """
import time, latentlm
model = latentlm.load("tiny")
model.generate("red apple", to="image")
started = time.perf_counter()
for seed in range(8):
    model.generate("blue circle", to="image", seed=seed)
print((time.perf_counter() - started) / 8)
"""


def settings() -> dict[str, dict[str, str]]:
    """Name -> environment variables."""
    cores = str(len(os.sched_getaffinity(0)))
    return {
        "default": {},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "no spinning": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": "0"},
        "before": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": SPIN},
    }


def workloads(smoke: bool, only: Sequence[str] = ()) -> dict[str, Callable[[dict[str, str]], float]]:
    """Name -> a function from environment variables to a rate (higher is better): tokens or pictures per second."""
    found: dict[str, Callable[[dict[str, str]], float]] = {
        "training": lambda variables: trained(variables, 3 if smoke else 12, []),
        "training, width 384": lambda variables: trained(
            variables, 3 if smoke else 15, ["model.transformer.width=384"]
        ),
        "generate": picture,
        "python": lambda variables: 1 / printed_seconds(IN_PYTHON, environment(variables)),
    }
    return {name: workload for name, workload in found.items() if not only or name in only}


def environment(variables: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return own | variables


def trained(variables: dict[str, str], steps: int, more: list[str]) -> float:
    """Tokens per second of a training run on the shapes world, without its first steps."""
    sources = "data.sources=[{name: shapes, task: text_to_image, limit: 200}]"
    keys = [sources, f"training.steps={steps}", "training.log_every=1", "training.save_every=1000", *more]
    keys += ["training.max_minutes=null", "training.sample_every=null", "training.global_micro_batches=1"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = [option for key in keys for option in ("--set", key)]
        run([*LATENTLM, "train", "demo", *options, "--out", str(out)], environment(variables))
        lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return median(line["tokens_per_second"] for line in lines[1:])


def picture(variables: dict[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "apple.png"
        arguments = [*LATENTLM, "generate", "tiny", "red apple", "--to", "image", "--out", str(out)]
        return 1 / seconds_of(lambda: run(arguments, environment(variables)))


@contextmanager
def neighbours(num: int) -> Iterator[None]:
    """`num` processes that compute without a pause."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(rounds: int, smoke: bool, only: Sequence[str] = ()) -> list[Figure]:
    """Rate of the default divided by that of the best other setting, for each workload, idle and busy."""
    figures = []
    for place, num, required in (("idle", 0, ">= 0.95"), ("busy", len(os.sched_getaffinity(0)), ">= 0.8")):
        for name, workload in workloads(smoke, only).items():
            rates: dict[str, list[float]] = {setting: [] for setting in settings()}
            with neighbours(num):
                for _ in range(rounds):
                    for setting, variables in settings().items():
                        rates[setting].append(workload(variables))
            medians = {setting: median(values) for setting, values in rates.items()}
            best = max(value for setting, value in medians.items() if setting != "default")
            what = f"{name}, {place}: default over the best of {', '.join(list(rates)[1:])}"
            detail = {"medians": medians, "runs": rates}
            figures.append(Figure(f"{place}.{name}", what, medians["default"] / best, "x", required, detail))
            print(figures[-1].what, {setting: round(value, 3) for setting, value in medians.items()}, flush=True)
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements per setting")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument("--only", nargs="+", default=(), help="names of workloads, such as training or python")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    machine = hardware()
    figures = measure(1 if options.smoke else options.rounds, options.smoke, options.only)
    print(describe(machine))
    print(table(figures))
    if options.out:
        write_json(options.out, figures, machine, {"rounds": options.rounds, "smoke": options.smoke})
    return 0


if __name__ == "__main__":
    sys.exit(main())
