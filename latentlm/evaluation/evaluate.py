"""All evaluations of a model in one call: `evaluate(pipeline) -> Report`.

Place in the flow: generation ──▶ evaluation ──▶ report.json, report.html. What runs depends on the model's tokenizers
and on what is installed; what could not be measured is named in the report with the reason, never left out silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..data.manifest import Manifest
from ..data.script import apply_prompt_format
from ..data.task_source import Concatenated
from ..generation.pipeline import Pipeline
from ..generation.request import check_solver
from ..tokenizers.base import Tokenizer
from ..types import Document
from .documents import evaluate_documents, reconstruct_documents
from .image import evaluate_digits, evaluate_emoji
from .multimodal import evaluate_shapes
from .protocol import GUIDANCE, QUICK, TASKS, Counts, Protocol, check_tasks
from .reconstruction import RECONSTRUCTED, evaluate_reconstruction, lack
from .report import Report
from .seen import Seen
from .speech import evaluate_speech
from .text import evaluate_text

EVERYTHING = Seen()


def evaluate(
    pipeline: Pipeline,
    *,
    guidance: float | Mapping[str, float] | None = None,
    steps: int = 20,
    seed: int = 0,
    solver: str | None = None,
    weights: str = "ema",
    seen: Seen = EVERYTHING,
    tasks: Sequence[str] | None = None,
    manifests: Sequence[str | Path] = (),
    held_out: Mapping[str, Sequence[Document]] | None = None,
    quick: bool = False,
    title: str = "LatentLM",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run every evaluation that the model allows; about two minutes for a small model on two cores.

    guidance: one scale for all, or scales by task over `protocol.GUIDANCE`. weights: which are loaded, "ema" or "raw",
    for the record. seen: what it was trained on; the rest is left out, and the report says so. tasks: only these of
    `protocol.TASKS`, seen or not. manifests: documents that were held out; held_out: more of them, by what they are
    called. quick: fewer samples. progress is told what begins. Raises UserError for an unknown task, emoji, solver or
    guidance key, and for what a manifest has wrong.
    """
    parameter = next(pipeline.model.parameters())
    solver = solver or pipeline.model.config.sampling.solver
    check_solver(solver)
    protocol = Protocol(
        guidance=GUIDANCE | {"documents": pipeline.model.config.sampling.guidance},
        steps=steps,
        seed=seed,
        solver=solver,
        weights=weights,
        dtype=str(parameter.dtype).removeprefix("torch."),
    ).with_guidance(guidance)
    if quick:
        protocol = replace(protocol, counts=QUICK)
    check_tasks(tasks or ())
    report = Report(title)
    if not seen.phrases:
        protocol = replace(protocol, counts=replace(protocol.counts, phrases=0))
    layout = pipeline.model.config.prompt
    kept = {str(path): Manifest(path) for path in manifests} | dict(held_out or {})
    documents = {name: apply_prompt_format(found, layout, name) for name, found in kept.items()}
    for task, run in _runs(pipeline, protocol, report, seen, documents).items():
        if task not in (tasks or TASKS) or (task == "documents" and not documents and not tasks):
            continue
        reason = _obstacle(task, pipeline, seen, documents, asked=tasks is not None)
        if reason:
            report.leave_out(task, reason)
            continue
        if progress:
            progress(f"evaluating {task}")
        start = time.perf_counter()
        with torch.no_grad():
            run()
        report.add_seconds(**{f"evaluate_{task}": time.perf_counter() - start})
    return report


def evaluate_tokenizer(
    tokenizer: Tokenizer, *, manifests: Sequence[str | Path] = (), quick: bool = False, title: str = "Tokenizer"
) -> Report:
    """A tokenizer by itself: what media lose on their way through it, those of the manifests or else the embedded ones.

    Raises UserError for what a manifest has wrong.
    """
    report = Report(title, "A tokenizer by itself: media to latents and back.")
    protocol = Protocol(counts=QUICK if quick else Counts())
    tokenizers = {tokenizer.modality: tokenizer}
    if tokenizer.modality not in RECONSTRUCTED:
        report.leave_out(f"reconstruction.{tokenizer.modality}", "there are no figures of this modality")
        return report
    with torch.no_grad():
        if manifests:
            documents = Concatenated([Manifest(path) for path in manifests])
            reconstruct_documents(tokenizers, protocol, report, documents, " and ".join(map(str, manifests)))
        else:
            evaluate_reconstruction(tokenizers, protocol, report, [tokenizer.modality])
    return report


def _runs(
    pipeline: Pipeline, protocol: Protocol, report: Report, seen: Seen, manifests: Mapping[str, Sequence[Document]]
) -> dict[str, Callable[[], None]]:
    common = (pipeline, protocol, report)
    documents, origin = Concatenated(list(manifests.values())), " and ".join(manifests)
    return {
        "text": lambda: evaluate_text(*common),
        "digits": lambda: evaluate_digits(*common),
        "emoji": lambda: evaluate_emoji(*common, seen.emoji_names or None),
        "shapes": lambda: evaluate_shapes(*common),
        "speech": lambda: evaluate_speech(*common),
        "reconstruction": lambda: evaluate_reconstruction(pipeline.tokenizers, protocol, report),
        "documents": lambda: evaluate_documents(*common, documents, origin),
    }


def _obstacle(task: str, pipeline: Pipeline, seen: Seen, manifests: Mapping, asked: bool) -> str | None:
    """Why `task` cannot run with this model here, or None; asked: by name."""
    if task == "reconstruction":
        return None
    if pipeline.tokenizers["text"].is_classes:
        return "the model makes pictures of classes and knows no text"
    if task == "documents":
        return None if manifests else "no manifest of held-out documents was named"
    if not asked and not seen.task(task):
        return "the model was not trained on any"
    modality = {"digits": "image", "emoji": "image", "shapes": "image", "speech": "speech"}.get(task)
    return lack(pipeline.tokenizers, modality, ("espeakng_loader", "pocketsphinx") if task == "speech" else ())
