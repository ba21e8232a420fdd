"""`train(recipe, folder)`: from a recipe to a trained model in `folder/model`; `preview(recipe)`: what it would train.

Place in the flow: 5, called by `latentlm train` and the demo. The parts that differ between kinds of recipe (builder,
loader, export) are looked up in `config/kinds.py`. With several processes `train` starts this module once per process
and hands it the recipe; torchrun may start it instead, with the recipe in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path

from ..config import Recipe, check_divisible, load_recipe, parse_recipe
from ..config.kinds import KINDS, lookup
from ..errors import UserError
from ..hardware import choose_device, set_threads
from ..run_folder import RECIPE, SETUP
from .checkpoint import CheckpointError
from .distributed import World, finish, follow_launcher, launch, start
from .folder import holds_run, locked_run_folder, resumed_threads, write_recipe
from .objective import Run
from .outline import details, first_line, outline
from .trainer import NonFiniteLoss, Trainer

STOPPED = 130
"""Exit code of a run that a signal stopped, the same as of a command stopped by Ctrl-C."""


class ProcessFailed(RuntimeError):
    """Training ended early with exit `code`, after printing the reason; STOPPED: by a signal, with a checkpoint."""

    def __init__(self, code: int):
        super().__init__(f"training ended early, with exit code {code}")
        self.code = code


def train(recipe: Recipe, folder: str | Path, *, processes: int = 1, resume: bool = False) -> Path:
    """Train `recipe` into `folder` and return the folder of the finished model.

    folder/ gets recipe.yaml (once a checkpoint is accepted or there is none), train.jsonl, held_out.jsonl, samples/,
    checkpoints/, model/, and adapter/ if an adapter is trained. Under torchrun every process calls this. Raises
    UserError if the folder is in use, or holds a run and `resume` is False, or another run; ProcessFailed if a signal
    stops the run or one of several processes fails.
    """
    folder = Path(folder)
    under_torchrun = int(os.environ.get("WORLD_SIZE", "1")) > 1
    world_size = int(os.environ.get("WORLD_SIZE", str(processes)))
    check_divisible(recipe.training.global_micro_batches, world_size)
    reason = KINDS[recipe.kind].no_shards
    if world_size > 1 and recipe.training.parallel == "shard" and reason:
        raise UserError(f"training.parallel shard {reason}")
    if processes > 1 and not under_torchrun:
        handed = json.dumps(recipe.model_dump(mode="json"))
        with locked_run_folder(folder, resume):
            code = launch(processes, ["-m", "latentlm.training.run", str(folder), handed])
        if code:
            raise ProcessFailed(code)
    else:
        world = start()
        with ExitStack() as held:
            world.on_main(lambda: held.enter_context(locked_run_folder(folder, resume)))
            _train(recipe, folder, world)
    return folder / "model"


def preview(recipe: Recipe) -> list[str]:
    """The lines of --dry-run: the header of a run, the rules behind its figures, an example. Writes nothing.

    Raises UserError for a kind of recipe that has no preview, and for anything missing that the recipe names.
    """
    spec, world = KINDS[recipe.kind], World(device=choose_device("auto"))
    if spec.preview is None or spec.workload is None:
        raise UserError(f"a recipe of kind {recipe.kind} has no --dry-run")
    set_threads(recipe.training.threads, training=True)
    run = lookup(spec.preview)(recipe, world)
    _set_threads_of(run, recipe.training.threads, world)
    work = lookup(spec.workload)(recipe, run, world)
    lines = [first_line(recipe.kind, recipe.training, world), *outline(run, recipe.training, world, work)]
    return [*lines, *details(work)]


def _train(recipe: Recipe, folder: Path, world: World) -> None:
    """Train in a folder that is locked. Rank 0 prints a header to stderr and the result to stdout.

    Raises ProcessFailed if a signal stops the run.
    """
    spec = KINDS[recipe.kind]
    threads = recipe.training.threads or resumed_threads(folder)  # the same on a resume, for the same sums
    set_threads(threads, processes=world.local_size, training=True)
    _say(world, [f"{folder}: training {first_line(recipe.kind, recipe.training, world)}"])
    run = lookup(spec.build)(recipe, folder, world)
    _set_threads_of(run, threads, world)
    loader = lookup(spec.loader)(recipe, run, world)
    export = lookup(spec.export)
    run.on_start = lambda: _begin(recipe, run, folder)
    run.on_export = lambda target: export(recipe, run, trainer, target)
    run.tensorboard = find_spec("tensorboard") is not None
    with closing(loader):
        if world.is_main:
            work = lookup(spec.workload)(recipe, run, world) if spec.workload else None
            _say(world, outline(run, recipe.training, world, work))
        trainer = Trainer(run, loader, recipe.training, folder, world=world)
        result = trainer.fit()
    if result.finished and world.is_main:
        print(f"{'trained' if result.num_trained else 'nothing left to train'}: {folder / 'model'}", flush=True)
    finish(world, 0 if result.finished else STOPPED)
    if not result.finished:
        raise ProcessFailed(STOPPED)


def _set_threads_of(run: Run, requested: int | None, world: World) -> None:
    """On a CPU, set the threads by the size of the model, unless a number was `requested`."""
    if requested is None and world.device.type == "cpu":
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        set_threads(processes=world.local_size, parameters=parameters, training=True)


def _begin(recipe: Recipe, run: Run, folder: Path) -> None:
    """Write the recipe, and what loading a step needs, into `folder`."""
    write_recipe(folder, recipe)
    if setup := KINDS[recipe.kind].setup:
        lookup(setup)(recipe, run, folder / SETUP)


def _say(world: World, lines: list[str]) -> None:
    if world.is_main:
        print("\n".join(lines), file=sys.stderr, flush=True)


def main(folder: Path, recipe: str | None = None) -> int:
    """Train as one process of several; print a UserError as one line.

    recipe: JSON from the process that launched this one and locked the folder. None under torchrun: the recipe in
    `folder` is trained, from the last checkpoint if there is one.
    """
    try:
        if recipe is not None:
            _train(parse_recipe(json.loads(recipe)), folder, start())
        else:
            train(load_recipe(folder / RECIPE), folder, resume=holds_run(folder))
    except (UserError, OSError, CheckpointError, NonFiniteLoss) as error:
        named = isinstance(error, OSError) and error.filename is not None
        said = f"{error.filename}: {error.strerror}" if named else str(error)
        print(f"latentlm: {' '.join(said.split())}", file=sys.stderr, flush=True)
        os._exit(2)  # the process group may be waiting for others that have failed too
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        follow_launcher()
    main(Path(sys.argv[1]), *sys.argv[2:3])
