"""Speed of generation: against its arithmetic floor, late in a sequence, while requests come and go, by checkout.

    python benchmarks/generation_speed.py --against TREE --batch 1 8 32 --pairs 5 --out against.json

compares the engine of this tree with that of another checkout (latents per second, this one over the other); all other
figures are printed by `spine.py`.
The engine runs as it does for users: prefill, different lengths of the two branches, one generator per request. The
matrix rate is measured again every few positions, so that both sides of a ratio are measured under the same load.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from figures import Figure, describe, hardware, table, write_json
from floor import MatrixRate, occurring_shapes, step_flops
from products import Products

from latentlm.config import DiffusionHeadConfig, ModelConfig, TransformerConfig
from latentlm.data.packing import EncodedDocument
from latentlm.generation.active_request import ActiveRequest
from latentlm.generation.engine import Engine
from latentlm.model.latentlm import LatentLM, ModalitySpec
from latentlm.model.prepack import PATIENCE
from latentlm.tokenizers.text import TextTokenizer

PROMPT = "red apple"
GUIDANCE = 2.0
WARM_UP = PATIENCE + 1
"""Positions before timing starts."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """Sizes of the model and of the run."""

    width: int = 384
    num_layers: int = 6
    num_heads: int = 6
    head_layers: int = 3
    latent_dim: int = 16
    num_latents: int = 256
    steps: int = 20
    chunk: int = 16  # positions between two probes of the matrix rate
    square: int = 1024


SMOKE = Setting(width=32, num_layers=2, num_heads=2, num_latents=32, steps=3, chunk=2, square=64)
"""Tiny sizes, to check that it runs."""


def build(setting: Setting, dtype: torch.dtype) -> LatentLM:
    """A model with random weights, none of them zero: the time does not depend on their values."""
    config = ModelConfig(
        transformer=TransformerConfig(
            width=setting.width,
            num_layers=setting.num_layers,
            num_heads=setting.num_heads,
            context_length=max(2048, 2 * setting.num_latents),
        ),
        head=DiffusionHeadConfig(num_layers=setting.head_layers),
    )
    text = TextTokenizer()
    torch.manual_seed(0)
    model = LatentLM(
        config, text.vocab_size, text.special, {"image": ModalitySpec(setting.latent_dim, setting.num_latents)}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval().to(dtype)


def new_request(model: LatentLM, setting: Setting, seed: int) -> ActiveRequest:
    special = model.special
    ids = [special.bos, *TextTokenizer().encode(PROMPT), special.bod["image"]]
    return ActiveRequest(
        EncodedDocument(ids, [0] * len(ids), [0] * len(ids), [], opens="image"),
        to="image",
        guidance=GUIDANCE,
        steps=setting.steps,
        solver="dpm++2m",
        temperature=0.0,
        max_tokens=1,
        max_latents=setting.num_latents,
        generator=torch.Generator().manual_seed(seed),
    )


def new_engine(model: LatentLM, setting: Setting, requests: int) -> Engine:
    return Engine.of(model, [new_request(model, setting, seed) for seed in range(requests)])


class Stepper:
    """An engine whose requests are advanced one position at a time."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def advance(self, positions: int) -> float:
        """Seconds to generate the next `positions` latents of every request."""
        started = time.perf_counter()
        for _ in range(positions):
            self.engine.step()
        return time.perf_counter() - started

    @property
    def context(self) -> list[int]:
        """Filled positions of every cache row."""
        return list(self.engine.cache.lengths)


# ------------------------------------------------------------------ the floor


def floor_figure(setting: Setting, name: str, requests: int, required: str) -> Figure:
    """Share of the arithmetic floor that the engine reaches: median over chunks of positions."""
    dtype = DTYPES[name]
    model = build(setting, dtype)
    rate = MatrixRate(occurring_shapes(model.config, 2 * requests, setting.steps), dtype, setting.square)
    stepper = Stepper(new_engine(model, setting, requests))
    shares, shares_square, shares_products, speeds = [], [], [], []
    stepper.advance(WARM_UP)  # prefill, and the matrices laid out
    products = Products(lambda: stepper.advance(1))
    rate_before = rate.probe()
    for _ in range((setting.num_latents - WARM_UP - 1) // setting.chunk):
        seconds = stepper.advance(setting.chunk)
        rate_after = rate.probe()
        flops = chunk_flops(model.config, setting, requests, stepper.context)
        shares.append(flops / seconds / ((rate_before + rate_after) / 2))
        shares_square.append(flops / seconds / rate.squares[-1])
        shares_products.append(products.seconds() * setting.chunk / seconds)
        speeds.append(requests * setting.chunk / seconds)
        rate_before = rate_after
    detail = {
        "latents_per_second": median(speeds),
        "mflop_per_latent": flops / requests / setting.chunk / 1e6,
        "share_of_square_rate": median(shares_square),
        "products_alone": median(shares_products),
        "rate": rate.detail(),
        "chunks": shares,
        "protocol": f"median over {len(shares)} chunks of {setting.chunk} positions, the rate probed around each; "
        f"width {setting.width}, {setting.num_layers} layers, head of {setting.head_layers}, {setting.num_latents} "
        f"latents of {setting.latent_dim}, {setting.steps} steps dpm++2m, guidance {GUIDANCE}",
    }
    what = (
        f"generation {name}, batch {requests}: {median(speeds):.0f} latents/s, "
        f"{median(shares_products):.0%} of the time in matrix products; share of the floor"
    )
    return Figure(f"generation.{name}.batch{requests}.floor_share", what, median(shares), "", required, detail)


def chunk_flops(config: ModelConfig, setting: Setting, requests: int, lengths: list[int]) -> int:
    """FLOPs of the chunk that has just been generated; attention at the mean length of the rows."""
    mean_context = sum(lengths) / len(lengths) - (setting.chunk - 1) / 2
    parts = step_flops(config, setting.latent_dim, requests=requests, guided=True, context=1, evaluations=setting.steps)
    attention = parts.pop("attention") * mean_context
    return round((sum(parts.values()) + attention) * setting.chunk)


# ------------------------------------------------------------------ positions


def position_figure(setting: Setting, name: str, requests: int, near: int, far: int, repeats: int) -> Figure:
    """Time per latent at position `far` divided by that at `near`; two engines with filled caches take turns."""
    model = build(setting, DTYPES[name])
    steppers = [filled(model, setting, requests, position) for position in (near, far)]
    seconds: list[list[float]] = [[], []]
    for number in range(repeats):
        for place in (0, 1) if number % 2 else (1, 0):
            seconds[place].append(steppers[place].advance(1))
    ratios = [late / early for early, late in zip(*seconds, strict=True)]
    detail = {
        "milliseconds_near": 1e3 * median(seconds[0]) / requests,
        "milliseconds_far": 1e3 * median(seconds[1]) / requests,
        "protocol": f"median ratio of {repeats} pairs in turn; both branches filled; {setting.steps} steps",
    }
    what = f"time per latent at position {far:,} divided by position {near}, {name}, batch {requests}"
    return Figure(f"generation.{name}.position_ratio", what, median(ratios), "x", "< 1.5", detail)


def filled(model: LatentLM, setting: Setting, requests: int, position: int) -> Stepper:
    """An engine that has produced latents, its cache then filled with noise up to `position`."""
    stepper = Stepper(new_engine(model, setting, requests))
    stepper.advance(WARM_UP)
    cache = stepper.engine.cache
    cache.reserve(position + setting.num_latents, model.config.transformer.context_length)
    with torch.inference_mode():
        cache.keys.normal_()
        cache.values.normal_()
    short = min(cache.lengths)
    cache.lengths = [position - (0 if length > short else 1) for length in cache.lengths]
    return stepper


# ---------------------------------------------------------------------- churn

LONG = 8
"""Requests that stay to the end; one more place is for visitors, which come and go."""
STAY = 16
"""Positions that each visitor stays; the next one joins with the step after."""


def churn_figure(setting: Setting, name: str) -> Figure:
    """Change of the time per step of LONG requests when a further place is taken by one visitor after another, instead
    of by one request that stays. Two engines take turns, one visit at a time; joining and leaving are included."""
    model = build(setting, DTYPES[name])
    stepper = Stepper(new_engine(model, setting, LONG + 1))
    visited = new_engine(model, setting, LONG + 1)
    guest = LONG
    for advance in (stepper.advance, Stepper(visited).advance):
        advance(WARM_UP)
    seconds: list[list[float]] = [[], []]
    for number in range((setting.num_latents - WARM_UP - 1) // STAY):
        for place in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            if place:
                visited.cancel(guest)
                guest = visited.add(new_request(model, setting, LONG + 1 + number))
            (Stepper(visited) if place else stepper).advance(STAY)
            seconds[place].append(time.perf_counter() - started)
    ratios = [visits / stays for stays, visits in zip(*seconds, strict=True)]
    detail = {
        "ratio": median(ratios),
        "ratios": ratios,
        "milliseconds_stays": 1e3 * median(seconds[0]) / STAY,
        "milliseconds_visits": 1e3 * median(seconds[1]) / STAY,
        "protocol": f"median ratio of {len(ratios)} pairs of {STAY} positions in turn; {LONG} guided requests and a "
        f"guided ninth, of {STAY} positions or for good; {setting.steps} steps",
    }
    what = f"time per step of {LONG} requests, {name}: change if others come and go in a ninth place"
    return Figure(f"generation.{name}.churn", what, abs(median(ratios) - 1), "", "<= 0.05", detail)


# -------------------------------------------------------------------- against

ROUNDS = 4
"""Turns of each engine of a pair."""


class Worker:
    """The engine of a checkout in its own process, advanced on demand; see `engine_worker.py`."""

    def __init__(self, tree: Path, setting: Setting, dtype: str, batch: int):
        options = {"setting": asdict(setting), "dtype": dtype, "batch": batch, "threads": torch.get_num_threads()}
        script = Path(__file__).with_name("engine_worker.py")
        command = [sys.executable, str(script), str(tree.resolve()), json.dumps(options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def advance(self, positions: int) -> float:
        """Seconds to generate the next `positions` latents of every request."""
        with suppress(BrokenPipeError):  # reported below, as there is no answer
            print(positions, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(self.process.args[1:3])} ended with exit code {self.process.wait()}")
        return float(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def against_figure(tree: Path, setting: Setting, dtype: str, batch: int, pairs: int) -> Figure:
    """Latents per second of this tree's engine over that of `tree`: median over `pairs` pairs of fresh processes."""
    trees, ratios, speeds = (tree, Path(__file__).parents[1]), [], [[], []]
    for pair in range(pairs):
        seconds = [0.0, 0.0]
        with Worker(trees[0], setting, dtype, batch) as other, Worker(trees[1], setting, dtype, batch) as this:
            for worker in (other, this):
                worker.advance(1)  # both have started and are warm
            for number in range(ROUNDS):
                for place in (0, 1) if (pair + number) % 2 else (1, 0):
                    seconds[place] += (other, this)[place].advance(setting.chunk)
        ratios.append(seconds[0] / seconds[1])
        for place in (0, 1):
            speeds[place].append(batch * ROUNDS * setting.chunk / seconds[place])
    detail = {
        "other": str(tree),
        "latents_per_second": {"this": median(speeds[1]), "other": median(speeds[0])},
        "ratios": ratios,
        "protocol": f"median over {pairs} pairs of processes that take {ROUNDS} turns of {setting.chunk} positions; "
        f"{setting.steps} steps dpm++2m, guidance {GUIDANCE}; the requirement allows for 3% of noise",
    }
    what = f"latents per second over {tree}, {dtype}, batch {batch}"
    return Figure(f"generation.{dtype}.batch{batch}.against", what, median(ratios), "x", ">= 0.97", detail)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, metavar="TREE", help="another checkout of this project")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, help="threads of torch, for both; default: torch's own")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to check that it runs")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = hardware()
    print(describe(machine), flush=True)
    setting, figures = SMOKE if options.smoke else Setting(), []
    for batch in options.batch:
        figures.append(against_figure(options.against, setting, options.dtype, batch, options.pairs))
        print(f"  {figures[-1].name} = {figures[-1].measured:.4g} x", file=sys.stderr, flush=True)
        if options.out:
            settings = {name: str(value) for name, value in vars(options).items() if name != "out"}
            write_json(options.out, figures, machine, settings)
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
