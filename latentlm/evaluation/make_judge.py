"""Train the digit judge, write judge.safetensors and print the accuracy on the held-out digits.

    python -m latentlm.evaluation.make_judge [OUTPUT] [--seeds N]

The packaged weights are those of seed 0; more seeds show how much the accuracy varies.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..weights import save_weights
from .judge import WEIGHTS, accuracy, real_scans, train_judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).with_name(WEIGHTS))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    held_out = real_scans("held_out")
    for seed in range(options.seeds):
        judge = train_judge(seed)
        print(f"seed {seed}: {accuracy(judge, held_out):.2%} of {len(held_out.labels)} held-out digits")
        if seed == 0:
            save_weights(options.output, judge.state_dict())


if __name__ == "__main__":
    main()
