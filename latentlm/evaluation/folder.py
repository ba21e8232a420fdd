"""What `latentlm evaluate` measures of a folder: one function per kind, looked up by `config/kinds.py`.

Place in the flow: commands ──▶ `Wish` ──▶ the evaluator of the folder's kind ──▶ `Report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_metadata
from ..config import SourceConfig, parse_recipe
from ..data.shards import ShardDocuments, check_tokenizers
from ..data.sources import documents
from ..errors import UserError
from ..generation.pipeline import load
from ..hardware import choose_dtype
from ..tokenizers.load import load_tokenizer
from ..types import Document
from .evaluate import evaluate, evaluate_tokenizer
from .report import Report
from .seen import Seen


@dataclass(frozen=True)
class Wish:
    """What the user asks for; `name` as it was given, `folder` what it stands for, the options as of the command."""

    name: str
    folder: Path
    device: torch.device
    manifests: Sequence[Path] = ()
    only: Sequence[str] = ()
    guidance: Mapping[str, float] | None = None
    steps: int = 20
    solver: str | None = None
    quick: bool = False
    seed: int = 0
    raw: bool = False
    dtype: str = "auto"
    say: Callable[[str], None] = print


def evaluate_model(wish: Wish) -> Report:
    """A LatentLM: on what it was trained on, or the manifests."""
    weights = "raw" if wish.raw else "ema"
    dtype = choose_dtype(wish.dtype, wish.device)
    pipeline = load(wish.name, weights=weights, device=wish.device, dtype=dtype)
    trained = read_metadata(wish.name).get("recipe")
    seen = Seen.of(parse_recipe(trained, f"{wish.name}: recipe")) if trained else Seen()
    return evaluate(
        pipeline,
        tasks=wish.only or (("documents",) if wish.manifests else None),
        manifests=wish.manifests or _there(seen.held_out, wish.say),
        held_out=None if wish.manifests else _streamed(seen.streamed, pipeline.tokenizers, wish.say),
        guidance=wish.guidance,
        steps=wish.steps,
        solver=wish.solver,
        seed=wish.seed,
        weights=weights,
        seen=seen,
        title=wish.name,
        quick=wish.quick,
        progress=wish.say,
    )


def evaluate_tokenizer_folder(wish: Wish) -> Report:
    """A tokenizer: what media lose on their way through it."""
    if wish.only or wish.guidance or wish.solver or wish.raw or wish.dtype != "auto":
        given = "--only, --guidance, --solver, --raw and --dtype"
        raise UserError(f"{given} are for models, and {wish.name} is a tokenizer")
    tokenizer = load_tokenizer(wish.folder).to(wish.device)
    return evaluate_tokenizer(tokenizer, manifests=wish.manifests, quick=wish.quick, title=wish.name)


def _streamed(
    configs: Sequence[SourceConfig], tokenizers: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Sequence[Document]]:
    """The held-out documents of paths and shards by what they are called; those that cannot be opened are named."""
    found = {}
    for config in configs:
        own = not isinstance(config.held_out, str)
        name = f"the held-out part of {config.label}" if own else config.held_out
        details = [*([] if config.task == "all" else [config.task]), *(f"{a}={b}" for a, b in config.columns.items())]
        try:
            if config.shards is not None:
                check_tokenizers(ShardDocuments(config.shards if own else config.held_out), tokenizers)
            found[f"{name} ({', '.join(details)})" if details else name] = documents(config, "held_out")
        except UserError as error:
            say(f"{error}; the recipe's held-out documents are left out, name others with --manifest")
    return found


def _there(manifests: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Those of a recipe that are still where it says; the others are named."""
    found = [path for path in manifests if Path(path).is_file()]
    for path in manifests:
        if path not in found:
            say(f"{path}: the recipe's held-out manifest is not there; name another with --manifest")
    return found
