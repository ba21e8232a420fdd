"""Generation against its arithmetic floor, and the cost of a latent early and late in a sequence.

The engine runs as it does for users: prefill, unlike lengths of the two branches, a generator per request. Every few
positions it pauses and the matrix rate is measured again, so both sides of each ratio see the same machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from figures import Figure
from floor import MatrixRate, occurring_shapes, step_flops
from products import Products

from latentlm.config import DiffusionHeadConfig, ModelConfig, TransformerConfig
from latentlm.data.packing import EncodedDocument
from latentlm.generation.engine import Engine
from latentlm.generation.task import Task
from latentlm.model.latentlm import LatentLM, ModalitySpec
from latentlm.model.prepack import PATIENCE
from latentlm.tokenizers.text import TextTokenizer

PROMPT = "red apple"
GUIDANCE = 2.0
WARM_UP = PATIENCE + 1
"""Positions before any is timed."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """The model and the run of these figures."""

    width: int = 384
    num_layers: int = 6
    num_heads: int = 6
    head_layers: int = 3
    latent_dim: int = 16
    num_latents: int = 256
    steps: int = 20
    chunk: int = 16  # positions between two probes of the matrix rate
    square: int = 1024


def build(setting: Setting, dtype: torch.dtype) -> LatentLM:
    """A model with random weights, none of them zero: the time does not depend on what it has learnt."""
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


def new_engine(model: LatentLM, setting: Setting, requests: int) -> Engine:
    special = model.special
    ids = [special.bos, *TextTokenizer().encode(PROMPT), special.bod["image"]]
    tasks = [
        Task(
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
        for seed in range(requests)
    ]
    return Engine(model, tasks)


class Stepper:
    """An engine's events taken one position of all its requests at a time."""

    def __init__(self, engine: Engine):
        self.requests = len(engine.tasks)
        self.engine = engine
        self.events = (event for event in engine.run() if event.kind == "latent")

    def advance(self, positions: int) -> float:
        """Seconds for the next latents of every request."""
        started = time.perf_counter()
        for _ in range(positions * self.requests):
            next(self.events)
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
        f"{median(shares_products):.0%} of the time its products alone; of the floor"
    )
    return Figure(f"generation.{name}.batch{requests}.floor_share", what, median(shares), "", required, detail)


def chunk_flops(config: ModelConfig, setting: Setting, requests: int, lengths: list[int]) -> int:
    """FLOPs of the chunk that has just been generated; attention at its mean length, each row its own."""
    mean_context = sum(lengths) / len(lengths) - (setting.chunk - 1) / 2
    parts = step_flops(config, setting.latent_dim, requests=requests, guided=True, context=1, evaluations=setting.steps)
    attention = parts.pop("attention") * mean_context
    return round((sum(parts.values()) + attention) * setting.chunk)


# ------------------------------------------------------------------ positions


def position_figure(setting: Setting, name: str, requests: int, near: int, far: int, repeats: int) -> Figure:
    """Cost of a latent at `far` over that at `near`: two engines whose caches are filled so far, taking turns."""
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
    what = f"cost of a latent at position {far:,} over {near}, {name}, batch {requests}"
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
