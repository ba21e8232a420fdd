"""The registry of kinds: `kind` of a recipe, or of a folder's config.json, ──▶ how it is built, trained, kept and read.

Place in the flow: training, loading, evaluation and the command line look a kind up here, and ask nothing else about
what a recipe or a folder is. This room is below all of those, so what lies higher is named as "module:attribute" and
imported when it is used. A new kind is one `TrainSpec`, given to `register`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import UserError
from .base import Config
from .recipes import ImageTokenizerRecipe, LatentLMRecipe, SpeechTokenizerRecipe

Lazy = str
"""A function as "module:attribute"."""


@dataclass(frozen=True)
class TrainSpec:
    """All that is particular to one kind.

    config     class of the recipe; the default of its field `kind` is the name of the kind
    build      (recipe, folder of the run, World) -> `training.objective.Run`, or a subclass
    loader     (recipe, run, World) -> `training.protocols.Loader`
    export     (recipe, run, trainer, folder): writes what `load` reads beside the weights; called on rank 0
    setup      (recipe, run, folder): writes what loading a step's checkpoint needs beside its tensors; called on rank 0
               before the first step. None: steps of this kind cannot be loaded, only what is exported
    load       (folder) -> what was exported. Of a model, (folder, *, adapter, weights, device, dtype)
    preview    (recipe, World) -> the run of `build` for --dry-run, which writes nothing; None: no --dry-run
    workload   (recipe, run, World) -> `training.outline.Workload`, for the header; None: a header without data and cost
    evaluate   (`evaluation.folder.EvaluationRequest`) -> `evaluation.report.Report`; None: it cannot be evaluated
    folders    what `kind` is in the config.json of the folders that `load` reads; by default the kind itself
    no_model   why `latentlm.load` refuses these folders; None: it loads them
    no_shards  why `training.parallel: shard` is refused; None: it works
    """

    config: type[Config]
    build: Lazy
    loader: Lazy
    export: Lazy
    load: Lazy
    setup: Lazy | None = None
    preview: Lazy | None = None
    workload: Lazy | None = None
    evaluate: Lazy | None = None
    folders: tuple[str, ...] = ()
    no_model: str | None = None
    no_shards: str | None = None

    @property
    def kind(self) -> str:
        return self.config.model_fields["kind"].default

    def folder_kinds(self) -> tuple[str, ...]:
        return self.folders or (self.kind,)


KINDS: dict[str, TrainSpec] = {}
"""By the `kind` of a recipe, in the order of registration."""


def register(spec: TrainSpec) -> None:
    """Add a kind. UserError where the kind of its recipe or of one of its folders is taken."""
    taken = {name for other in KINDS.values() for name in other.folder_kinds()}
    if spec.kind in KINDS or not taken.isdisjoint(spec.folder_kinds()):
        raise UserError(f"kind {spec.kind!r} or its folders {', '.join(spec.folder_kinds())} are registered already")
    KINDS[spec.kind] = spec


def lookup(name: Lazy) -> Callable[..., Any]:
    """The function that "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def spec_of_folder(kind: Any, origin: str) -> TrainSpec:
    """The kind whose folders have `kind` in their config.json; UserError, naming `origin`, where there is none."""
    for spec in KINDS.values():
        if kind in spec.folder_kinds():
            return spec
    known = ", ".join(name for spec in KINDS.values() for name in spec.folder_kinds())
    raise UserError(f"{origin}: kind is {kind!r}, expected one of {known}")


register(
    TrainSpec(
        config=LatentLMRecipe,
        build="latentlm.training.latentlm:build_latentlm",
        preview="latentlm.training.latentlm:preview_latentlm",
        workload="latentlm.training.workload:latentlm_workload",
        loader="latentlm.training.latentlm:document_loader",
        export="latentlm.training.latentlm:export_latentlm",
        setup="latentlm.training.latentlm:write_setup",
        load="latentlm.generation.pipeline:load_pipeline",
        evaluate="latentlm.evaluation.folder:evaluate_model",
    )
)

_TOKENIZER = {
    "build": "latentlm.training.tokenizer:build_tokenizer",
    "preview": "latentlm.training.tokenizer:preview_tokenizer",
    "workload": "latentlm.training.workload:tokenizer_workload",
    "loader": "latentlm.training.tokenizer:media_loader",
    "export": "latentlm.training.tokenizer:export_tokenizer",
    "load": "latentlm.tokenizers.load:load_tokenizer",
    "evaluate": "latentlm.evaluation.folder:evaluate_tokenizer_folder",
    "no_model": "a tokenizer, not a model: a recipe names it in its section tokenizers, latentlm evaluate measures it, "
    "and latentlm.tokenizers.load_tokenizer loads it",
    "no_shards": "is for language models: a tokenizer is calibrated by one process",
}

register(TrainSpec(config=ImageTokenizerRecipe, folders=("image", "conv_image"), **_TOKENIZER))
register(TrainSpec(config=SpeechTokenizerRecipe, folders=("speech",), **_TOKENIZER))
