"""All evaluations of a model in one call: `evaluate(pipeline) -> Report`.

Place in the flow: generation ──▶ evaluation ──▶ report.json, report.html. The parts that run depend on the sources that
the model was trained on, its tokenizers, and the packages that are installed; a part that could not be measured is
named in the report with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..config.modalities import as_segment
from ..data.manifest import Manifest
from ..data.script import apply_prompt_format
from ..data.task_source import Concatenated, Lazy
from ..errors import UserError
from ..generation.pipeline import Pipeline
from ..generation.request import check_solver
from ..model.latentlm import LatentLM
from ..tokenizers.base import Tokenizer
from ..types import Document
from .documents import NO_TRAINING, evaluate_documents, reconstruct_documents
from .image import evaluate_digits, evaluate_emoji
from .multimodal import evaluate_shapes
from .protocol import GUIDANCE, QUICK, TASKS, Counts, Protocol, check_tasks
from .reconstruction import EMBEDDED_SETS, RECONSTRUCTED, evaluate_reconstruction, missing_requirement
from .report import Report
from .seen import Seen
from .speech import evaluate_speech
from .text import evaluate_text

EVERYTHING = Seen()
DEFAULT_STEPS = 20


def evaluate(
    pipeline: Pipeline,
    *,
    guidance: float | Mapping[str, float] | None = None,
    steps: int | None = None,
    seed: int = 0,
    solver: str | None = None,
    weights: str = "ema",
    seen: Seen = EVERYTHING,
    tasks: Sequence[str] | None = None,
    manifests: Sequence[str | Path] = (),
    held_out: Mapping[str, Sequence[Document]] | None = None,
    training: Mapping[str, Sequence[Sequence[Document]]] = NO_TRAINING,
    quick: bool = False,
    title: str = "LatentLM",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run every part that the model allows; about two minutes for a small model on two cores.

    guidance: one scale for all parts, or scales by part over `protocol.GUIDANCE`. steps, solver: of diffusion heads; 20
    and the model's own by default. weights: those that are loaded, "ema" or "raw", for the protocol. seen: the sources
    that the model was trained on; other parts do not run. tasks: only these parts, of `protocol.TASKS`, whether seen or
    not. manifests: files of held-out documents; held_out: more of them, by name. training: the user's own training
    documents by modality, from which judges learn. quick: fewer samples. progress: called with each part that begins.
    Raises UserError for an unknown part, emoji, solver or guidance key, for steps or a solver where no head uses them,
    and for errors in a manifest.
    """
    parameter = next(pipeline.model.parameters())
    uses_solver = has_solver(pipeline.model)
    if not uses_solver and (steps is not None or solver is not None):
        raise UserError("steps and solver are for diffusion heads, and this model has none")
    solver = solver or pipeline.model.config.sampling.solver
    check_solver(solver)
    protocol = Protocol(
        guidance=GUIDANCE | {"documents": pipeline.model.config.sampling.guidance},
        steps=DEFAULT_STEPS if steps is None else steps,
        seed=seed,
        solver=solver,
        uses_solver=uses_solver,
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
    parts = _parts_of(seen, bool(documents)) if tasks is None else tasks
    unseen = [task for task in TASKS if task not in parts and task != "documents"]
    if unseen and tasks is None:
        why = "the model was not trained on their sources; name a part with --only to measure it anyway"
        report.notes.append(f"left out: {', '.join(unseen)} ({why}).")
    for task, run in _runs(pipeline, protocol, report, seen, documents, training).items():
        if task not in parts:
            continue
        reason = _obstacle(task, pipeline, documents)
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
    tokenizer: Tokenizer,
    *,
    manifests: Sequence[str | Path] = (),
    media: Mapping[str, Sequence] | None = None,
    quick: bool = False,
    title: str = "Tokenizer",
) -> Report:
    """Reconstruction by one tokenizer: of the media of the manifests, or of `media` by name, or of embedded media.

    Raises UserError for errors in a manifest.
    """
    media = media or {}
    report = Report(title, "Reconstruction by a tokenizer: media to latents and back.")
    protocol = Protocol(counts=QUICK if quick else Counts())
    tokenizers = {tokenizer.modality: tokenizer}
    if tokenizer.modality not in RECONSTRUCTED:
        report.leave_out(f"reconstruction.{tokenizer.modality}", "there is no measure for this modality")
        return report
    with torch.no_grad():
        if manifests or media:
            own = [_as_documents(each, protocol) for each in media.values()]
            documents = Concatenated([*map(Manifest, manifests), *own])
            reconstruct_documents(tokenizers, protocol, report, documents, " and ".join(map(str, (*manifests, *media))))
        else:
            sets = [name for name, modality in EMBEDDED_SETS.items() if modality == tokenizer.modality]
            evaluate_reconstruction(tokenizers, protocol, report, sets)
    return report


def _as_documents(media: Sequence, protocol: Protocol) -> Sequence[Document]:
    """One document per medium that is reconstructed, each decoded when it is asked for."""
    num = min(len(media), protocol.counts.reconstructions)
    return Lazy(num, lambda place: Document((as_segment(media[place]),)))


def has_solver(model: LatentLM) -> bool:
    """Whether any head of the model is sampled by a solver: a diffusion head."""
    config = model.config
    return any(config.heads.get(name, config.head).kind == "diffusion" for name in model.modalities)


def _parts_of(seen: Seen, has_documents: bool) -> list[str]:
    """The parts whose sources were trained on; "documents" also if the user's own data have no held-out part."""
    wanted = {"reconstruction": bool(_reconstructed(seen)), "documents": has_documents or bool(seen.own)}
    return [task for task in TASKS if wanted.get(task, seen.part(task))]


def _reconstructed(seen: Seen) -> list[str]:
    return [name for name in EMBEDDED_SETS if seen.part(name)]


def _runs(
    pipeline: Pipeline,
    protocol: Protocol,
    report: Report,
    seen: Seen,
    documents: Mapping[str, Sequence[Document]],
    training: Mapping[str, Sequence[Sequence[Document]]],
) -> dict[str, Callable[[], None]]:
    common = (pipeline, protocol, report)
    own, origin = Concatenated(list(documents.values())), " and ".join(documents)
    sets = _reconstructed(seen) or list(EMBEDDED_SETS)  # none seen: the part runs only where it is asked for
    return {
        "text": lambda: evaluate_text(*common, seen.sources if seen.part("text") else None),
        "digits": lambda: evaluate_digits(*common),
        "emoji": lambda: evaluate_emoji(*common, seen.emoji_names or None),
        "shapes": lambda: evaluate_shapes(*common),
        "speech": lambda: evaluate_speech(*common),
        "reconstruction": lambda: evaluate_reconstruction(pipeline.tokenizers, protocol, report, sets),
        "documents": lambda: evaluate_documents(*common, own, origin, training),
    }


def _obstacle(task: str, pipeline: Pipeline, documents: Mapping[str, Sequence[Document]]) -> str | None:
    """Why `task` cannot run with this model here, or None."""
    if task == "reconstruction":
        return None
    if pipeline.tokenizers["text"].is_classes:
        return "the model is class-conditional and has no text"
    if task == "documents":
        return None if documents else "no held-out documents: name a manifest of them with --manifest"
    modality = {"digits": "image", "emoji": "image", "shapes": "image", "speech": "speech"}.get(task)
    return missing_requirement(
        pipeline.tokenizers, modality, ("espeakng_loader", "pocketsphinx", "jiwer") if task == "speech" else ()
    )
