"""The registry of kinds: how each `kind` of a recipe or of a folder's config.json is built, trained, saved, loaded.

Place in the flow: training, loading, evaluation and the command line look kinds up here instead of testing types. This
package is below all of those, so functions are named as "module:attribute" and imported when they are used. A new kind
is one `TrainSpec`, passed to `register`.
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
    """The functions and classes of one kind.

    config     class of the recipe; the default of its field `kind` is the name of the kind
    build      (recipe, folder of the run, World) -> `training.objective.Run`, or a subclass
    loader     (recipe, run, World) -> `training.protocols.Loader`
    export     (recipe, run, trainer, folder): writes the files that `load` needs beside the weights; called on rank 0
    setup      (recipe, run, folder): writes what loading a step's checkpoint needs beside its tensors; called on rank 0
               before the first step. None: steps of this kind cannot be loaded, only what is exported
    load       (folder) -> the exported model or tokenizer; of a model, (folder, *, adapter, weights, device, dtype)
    preview    (recipe, World) -> the run of `build` for --dry-run, which writes nothing; None: no --dry-run
    workload   (recipe, run, World) -> `training.outline.Workload`, for the header; None: a header without data and cost
    evaluate   (`evaluation.folder.EvaluationRequest`) -> `evaluation.report.Report`; None: it cannot be evaluated
    folders    values of `kind` in the config.json of folders that `load` reads; default: the kind itself
    no_model   the reason why `latentlm.load` refuses these folders; None: it loads them
    no_shards  the reason why `training.parallel: shard` is refused; None: it works
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
    """Add a kind. Raises UserError if the kind of its recipe or of one of its folders is registered already."""
    taken = {name for other in KINDS.values() for name in other.folder_kinds()}
    if spec.kind in KINDS or not taken.isdisjoint(spec.folder_kinds()):
        raise UserError(f"kind {spec.kind!r} or its folders {', '.join(spec.folder_kinds())} are registered already")
    KINDS[spec.kind] = spec


def lookup(name: Lazy) -> Callable[..., Any]:
    """The function that "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def spec_of_folder(kind: Any, origin: str) -> TrainSpec:
    """The kind whose folders have `kind` in config.json. Raises UserError, naming `origin`, for an unknown kind."""
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
