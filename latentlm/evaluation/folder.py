"""Evaluation of a folder, as `latentlm evaluate` does it: one function per kind, looked up by `config/kinds.py`.

Place in the flow: commands ──▶ `EvaluationRequest` ──▶ the evaluator of the folder's kind ──▶ `Report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_metadata
from ..config import SourceConfig, load_recipe, parse_recipe
from ..data.shards import ShardDocuments, check_tokenizers
from ..data.sources import documents, holds, media, open_source
from ..errors import UserError
from ..generation.pipeline import load
from ..hardware import choose_dtype
from ..run_folder import RECIPE
from ..tokenizers.load import load_tokenizer
from ..types import Document
from .evaluate import evaluate, evaluate_tokenizer
from .report import Report
from .seen import Seen


@dataclass(frozen=True)
class EvaluationRequest:
    """The arguments of `latentlm evaluate`: `name` as the user wrote it, the `folder` that it means, the options."""

    name: str
    folder: Path
    device: torch.device
    manifests: Sequence[Path] = ()
    only: Sequence[str] = ()
    guidance: Mapping[str, float] | None = None
    steps: int | None = None
    solver: str | None = None
    quick: bool = False
    seed: int = 0
    raw: bool = False
    dtype: str = "auto"
    say: Callable[[str], None] = print


def evaluate_model(request: EvaluationRequest) -> Report:
    """Evaluate a LatentLM on the sources of its recipe, or on the manifests."""
    weights = "raw" if request.raw else "ema"
    dtype = choose_dtype(request.dtype, request.device)
    pipeline = load(request.name, weights=weights, device=request.device, dtype=dtype)
    trained = read_metadata(request.name).get("recipe")
    seen = Seen.of(parse_recipe(trained, f"{request.name}: recipe")) if trained else Seen.nothing()
    if not trained and not request.manifests and not request.only:
        request.say(
            f"{request.name} has no recipe that names its training data; give held-out documents with --manifest"
        )
    return evaluate(
        pipeline,
        tasks=request.only or (("documents",) if request.manifests else None),
        manifests=request.manifests or _there(seen.held_out, request.say),
        held_out=None if request.manifests else _streamed(seen.streamed, pipeline.tokenizers, request.say),
        training=_training(seen.own, request.say),
        guidance=request.guidance,
        steps=request.steps,
        solver=request.solver,
        seed=request.seed,
        weights=weights,
        seen=seen,
        title=request.name,
        quick=request.quick,
        progress=request.say,
    )


def evaluate_tokenizer_folder(request: EvaluationRequest) -> Report:
    """Evaluate a tokenizer: the reconstruction of media."""
    if request.only or request.guidance or request.steps or request.solver or request.raw or request.dtype != "auto":
        given = "--only, --guidance, --steps, --solver, --raw and --dtype"
        raise UserError(f"{given} are for models, and {request.name} is a tokenizer")
    tokenizer = load_tokenizer(request.folder).to(request.device)
    held_out = {} if request.manifests else _held_out_media(request, tokenizer.modality)
    if not request.manifests and not held_out:
        request.say("measured on media of the package; --manifest names a JSONL file of your own")
    return evaluate_tokenizer(
        tokenizer, manifests=request.manifests, media=held_out, quick=request.quick, title=request.name
    )


def _held_out_media(request: EvaluationRequest, modality: str) -> dict[str, Sequence]:
    """The held-out media of the sources that are not embedded, by name, from the recipe of the tokenizer's run.

    `say` gets the errors of those that do not open. Empty for a folder that is not the model of a run.
    """
    path, found = request.folder.parent / RECIPE, {}
    if not path.is_file():
        return found
    for source in load_recipe(path).data.sources:
        try:
            kept = () if source.name is not None else media(source, modality, "held_out")
        except UserError as error:
            request.say(f"{error}; its held-out media are left out, name others with --manifest")
            continue
        if len(kept):
            found[f"the held-out part of {source.label}"] = kept
    return found


def _streamed(
    configs: Sequence[SourceConfig], tokenizers: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Sequence[Document]]:
    """The held-out documents of paths and shards by name; `say` gets the errors of those that do not open."""
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
    """The manifests that exist; `say` gets the names of the others."""
    found = [path for path in manifests if Path(path).is_file()]
    for path in manifests:
        if path not in found:
            say(f"{path}: the recipe's held-out manifest is not there; name another with --manifest")
    return found


def _training(configs: Sequence[SourceConfig], say: Callable[[str], None]) -> dict[str, list[Sequence[Document]]]:
    """The training documents of the sources by modality; `say` gets the errors of those that do not open."""
    found: dict[str, list[Sequence[Document]]] = {"image": [], "speech": []}
    for config in configs:
        try:
            for modality, parts in found.items():
                if holds(config, modality):
                    parts.append(open_source(config).document_source(config.task, "train", config.limit))
        except UserError as error:
            say(f"{error}; the judges learn from the held-out documents alone")
    return found
