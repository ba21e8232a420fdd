"""Runs the engine of one checkout on commands from standard input; a worker of `generation_speed.py --against`.

    python benchmarks/engine_worker.py TREE '{"setting": {…}, "dtype": "fp32", "batch": 8, "threads": 1}'

Each line of input is a number of positions; the answer is the seconds that they took. Model, requests and stepping are
those of TREE/benchmarks/generation_speed.py, which fits the engine of its tree.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    tree, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.path[:1] = [str(tree), str(tree / "benchmarks")]
    import generation_speed
    import torch

    import latentlm

    if Path(latentlm.__file__).parents[1] != tree:
        raise ValueError(f"{tree}: latentlm was imported from {latentlm.__file__} instead")
    torch.set_num_threads(options["threads"])
    setting = generation_speed.Setting(**options["setting"])
    model = generation_speed.build(setting, generation_speed.DTYPES[options["dtype"]])
    stepper = generation_speed.Stepper(generation_speed.new_engine(model, setting, options["batch"]))
    stepper.advance(generation_speed.WARM_UP)
    for line in sys.stdin:
        print(stepper.advance(int(line)), flush=True)


if __name__ == "__main__":
    main()
