"""Speed and memory: import, first picture, generation and its floor, long contexts, churn, training, demo.

    python benchmarks/spine.py --out spine.json            all but the demo, which takes long
    python benchmarks/spine.py --only generation --threads 1
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/spine.py --only generation --threads 1     without AMX
    python benchmarks/spine.py --only demo

Prints a table (what, measured, required) under a line of hardware, and writes the same with every detail as JSON.
Both sides of every ratio are measured in the same run, in turns. The exit code is 0 even if a figure misses its
requirement, unless something could not be measured.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from commands import cold_generate_figure, demo_memory_figure, import_figures
from figures import Figure, describe, hardware, table, write_json
from generation_speed import SMOKE, Setting, churn_figure, floor_figure, position_figure
from training_speed import training_figure

PARTS = ("import", "generate", "generation", "position", "churn", "training", "demo")
REQUIRED_SHARE = {8: ">= 0.4", 32: ">= 0.7"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts instead of all but demo")
    parser.add_argument("--demo", action="store_true", help="also the peak memory of the demo")
    parser.add_argument("--demo-arguments", default="", help="further arguments of `latentlm demo`, as one string")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own")
    parser.add_argument("--model", default="tiny", help="model of the first picture in a fresh process")
    parser.add_argument("--recipe", default="demo", help="the recipe whose training is measured")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument(
        "--dtypes", nargs="+", choices=("fp32", "bf16"), help="default fp32, and bf16 where it is native"
    )
    parser.add_argument("--block", type=int, default=10, help="training steps in a block")
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of latents at the two positions")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to check that it runs")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, bf16_native: bool) -> Iterator[Figure]:
    parts = set(options.only or PARTS[:-1]) | ({"demo"} if options.demo else set())
    setting = SMOKE if options.smoke else Setting()
    if "import" in parts:
        yield from import_figures(1 if options.smoke else 5)
    if "generate" in parts:
        yield cold_generate_figure(options.model, 1 if options.smoke else 3)
    main_dtype = "bf16" if bf16_native else "fp32"
    if "generation" in parts:
        for dtype in options.dtypes or (("fp32", "bf16") if bf16_native else ("fp32",)):
            for batch in options.batches:
                required = REQUIRED_SHARE.get(batch, "") if dtype == main_dtype else ""
                yield floor_figure(setting, dtype, batch, required)
    if "position" in parts:
        near, far = (4, 16) if options.smoke else (64, 1024)
        yield position_figure(setting, main_dtype, options.batches[0], near, far, options.repeats)
    if "churn" in parts:
        yield churn_figure(setting, main_dtype)
    if "training" in parts:
        threads = {"training.threads": options.threads} if options.threads else {}
        yield training_figure(options.recipe, threads, options.block, options.blocks)
    if "demo" in parts:
        yield demo_memory_figure(shlex.split(options.demo_arguments))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = hardware()
    print(describe(machine), flush=True)
    figures = []
    for figure in measure(options, machine["bf16_native"]):
        figures.append(figure)
        print(f"  {figure.name} = {figure.measured:.4g} {figure.unit}", file=sys.stderr, flush=True)
        if options.out:  # after every figure: a later failure loses nothing
            settings = {name: value for name, value in vars(options).items() if name != "out"}
            write_json(options.out, figures, machine, settings)
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
