"""`train(recipe, folder)`: one call from a recipe to a trained model in `folder/model`.

Place in the flow: 5, the command `latentlm train` and the demo call it. With several processes it starts itself once
for each and hands them the recipe; torchrun may start them instead, with the recipe that lies in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import write_config
from ..config import LatentLMRecipe, MediaConfig, Recipe, load_recipe, parse_recipe
from ..data.ahead import DocumentsAhead, MediaAhead
from ..data.task_source import Concatenated, Lazy
from ..generation.pipeline import Pipeline
from ..model import adapter
from ..tokenizers.image import ImageTokenizer
from ..tokenizers.losses import loss_weights
from ..tokenizers.speech import SpeechTokenizer
from ..types import MediaBatch
from ..weights import save_weights
from .build import LatentLMRun, build_latentlm
from .checkpoint import CheckpointError
from .contract import Loader
from .distributed import World, finish, follow_launcher, launch, start
from .feed import media_loader
from .folder import RECIPE, claimed, holds_run, write_recipe
from .held_out import HeldOut
from .samples import ReconstructionWriter, SampleWriter
from .trainer import NonFiniteLoss, Trainer

STOPPED = 130
"""Exit code of a run that a signal ended early, as of a command that Ctrl-C ended."""


class ProcessFailed(RuntimeError):
    """Training ended with `code` before its time, having said why itself; STOPPED: by a signal, with a checkpoint."""

    def __init__(self, code: int):
        super().__init__(f"training ended early, with exit code {code}")
        self.code = code


def train(recipe: Recipe, folder: str | Path, *, processes: int = 1, resume: bool = False) -> Path:
    """Train `recipe` into `folder`; returns the folder of the finished model.

    folder/ gets recipe.yaml (once a checkpoint is accepted or there is none), train.jsonl, held_out.jsonl, samples/,
    checkpoints/ and model/, and adapter/ where one trains. Under torchrun every process calls this. Raises ValueError
    when the folder is in use or holds another run, or one and `resume` is not asked for; ProcessFailed when a signal
    stops it or one of several processes fails.
    """
    folder = Path(folder)
    under_torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1
    world_size = int(os.environ.get("WORLD_SIZE", str(processes)))
    if recipe.training.accumulation % world_size:
        raise ValueError(
            f"training.accumulation {recipe.training.accumulation} is not a multiple of the {world_size} processes"
        )
    if world_size > 1 and recipe.training.parallel == "shard" and not isinstance(recipe, LatentLMRecipe):
        raise ValueError("training.parallel shard is for language models: a tokenizer is calibrated by one process")
    if processes > 1 and not under_torchrun:
        handed = json.dumps(recipe.model_dump(mode="json"))
        with claimed(folder, resume):
            code = launch(processes, ["-m", "latentlm.training.run", str(folder), handed])
        if code:
            raise ProcessFailed(code)
    else:
        world = start()
        with ExitStack() as held:
            world.on_main(lambda: held.enter_context(claimed(folder, resume)))
            _train(recipe, folder, world, says=under_torchrun)
    return folder / "model"


def _train(recipe: Recipe, folder: Path, world: World, says: bool = False) -> None:
    """In a folder that is claimed; ProcessFailed where a signal stopped it. `says` where, as under torchrun, nobody is
    there to tell its end."""
    run = _train_latentlm if isinstance(recipe, LatentLMRecipe) else _train_tokenizer
    finished = run(recipe, folder, world)
    if says and finished and world.is_main:
        print(f"trained: {folder / 'model'}")
    finish(world, 0 if finished else STOPPED)
    if not finished:
        raise ProcessFailed(STOPPED)


def _train_latentlm(recipe: LatentLMRecipe, folder: Path, world: World) -> bool:
    """Whether it came to the end of its schedule."""
    run = build_latentlm(recipe, folder, world)
    metadata = {"recipe": recipe.model_dump(mode="json")}
    trainer = Trainer(
        run.model,
        run.loader,
        recipe.training,
        folder,
        world=world,
        identity=run.identity,
        on_start=lambda: write_recipe(folder, recipe),
        write=partial(_write_adapted, run) if recipe.training.adapter else save_weights,
        on_export=lambda target: write_config(target, run.model, run.tokenizers, metadata),
        on_sample=_sampler(run, folder / "samples"),
        tensorboard=find_spec("tensorboard") is not None,
    )
    with _ending(run.loader):
        return trainer.fit().finished


@contextmanager
def _ending(loader: Loader) -> Iterator[None]:
    """Ends the workers of a loader that has any, however the training ends."""
    try:
        yield
    finally:
        if isinstance(loader, DocumentsAhead | MediaAhead):
            loader.close()


def _sampler(run: LatentLMRun, folder: Path) -> Callable[[nn.Module, int], dict[str, float]]:
    pipeline = Pipeline(run.model, run.tokenizers)
    write, held_out = SampleWriter(pipeline, run.documents, folder), HeldOut(pipeline, run.held_out)
    return lambda model, step: write(model, step) | held_out()


def _write_adapted(run: LatentLMRun, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Beside the model with the adapter merged the adapter alone; the averaged weights come last and stay."""
    save_weights(path, adapter.merge(run.model, weights))
    adapter.save(run.model, weights, path.parent.parent / "adapter", run.identity["model.start"])


def _train_tokenizer(recipe: Recipe, folder: Path, world: World) -> bool:
    """Train, then measure the normalisation with the weights that are kept."""
    torch.manual_seed(recipe.training.seed)
    kind: Callable = ImageTokenizer if recipe.tokenizer.kind == "image" else SpeechTokenizer
    tokenizer = kind(recipe.tokenizer, recipe.losses)
    training = recipe.training
    loader, sources = media_loader(
        recipe.data, tokenizer, seed=training.seed, num_streams=training.accumulation, world=world
    )
    trainer = Trainer(
        tokenizer,
        loader,
        training,
        folder,
        world=world,
        loss_weights=loss_weights(recipe),
        identity={"tokenizer": recipe.tokenizer.model_dump(mode="json")},
        on_start=lambda: write_recipe(folder, recipe),
        write=None,  # raw and not calibrated, they would be no tokenizer
        on_export=lambda target: _export_tokenizer(trainer, tokenizer, recipe.data, sources, target),
        on_sample=ReconstructionWriter(sources, folder / "samples"),
        unit="examples",
        tensorboard=find_spec("tensorboard") is not None,
    )
    with _ending(loader):
        return trainer.fit().finished


CALIBRATION_MEDIA = 20_000
"""Media on which a tokenizer is calibrated, at most, of a source on disk: evenly spread."""


def _export_tokenizer(
    trainer: Trainer, tokenizer, config: MediaConfig, sources: Sequence[Sequence], folder: Path
) -> None:
    """The averaged weights where there are any, calibrated on all training media in memory, and some of those on disk:
    the one tokenizer of the run."""
    items = Concatenated(
        [_some(source) if c.is_streamed else source for c, source in zip(config.sources, sources, strict=True)]
    )
    with trainer.ema.applied(tokenizer) if trainer.ema else nullcontext():
        tokenizer.eval()
        found = tokenizer.calibrate(_batches(tokenizer, items))
        tokenizer.save(folder)
    std, absolute = ("-" if v is None else _numbers(v) for v in (found.std, found.c_sigma_absolute))
    print(f"calibrated on {found.num_latents:,} latents: std(μ) {std}, C_σ absolute {absolute}")


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _some(source: Sequence) -> Sequence:
    num = min(len(source), CALIBRATION_MEDIA)
    return Lazy(num, lambda place: source[place * len(source) // num])


def _batches(tokenizer, items: Sequence, size: int = 32) -> Iterator[MediaBatch]:
    for start_at in range(0, len(items), size):
        yield tokenizer.batch([items[i] for i in range(start_at, min(start_at + size, len(items)))])


def main(folder: Path, recipe: str | None = None) -> int:
    """One process of several; what the user can mend is one line.

    recipe: JSON from the process that launched this one and claimed the folder. Under torchrun there is none: the
    recipe that lies in `folder` is trained, from the last checkpoint where there is one.
    """
    try:
        if recipe is not None:
            _train(parse_recipe(json.loads(recipe)), folder, start())
        else:
            train(load_recipe(folder / RECIPE), folder, resume=holds_run(folder))
    except (ValueError, OSError, CheckpointError, NonFiniteLoss) as error:
        named = isinstance(error, OSError) and error.filename is not None
        said = f"{error.filename}: {error.strerror}" if named else str(error)
        print(f"latentlm: {' '.join(said.split())}", file=sys.stderr, flush=True)
        os._exit(2)  # the process group may be waiting for others that have failed too
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        follow_launcher()
    main(Path(sys.argv[1]), *sys.argv[2:3])
