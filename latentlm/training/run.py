"""`train(recipe, folder)`: one call from a recipe to a trained model in `folder/model`.

Place in the flow: 5, the command `latentlm train` and the demo call it. What is particular to a kind of recipe (its
builder, its loader, what it exports) is looked up in `config/kinds.py`. With several processes it starts itself once
for each and hands them the recipe; torchrun may start them instead, with the recipe that lies in the folder.
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
from ..run_folder import SETUP
from .checkpoint import CheckpointError
from .distributed import World, finish, follow_launcher, launch, start
from .folder import RECIPE, holds_run, locked_run_folder, write_recipe
from .objective import Run
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
    checkpoints/ and model/, and adapter/ where one trains. Under torchrun every process calls this. Raises UserError
    when the folder is in use or holds another run, or one and `resume` is not asked for; ProcessFailed when a signal
    stops it or one of several processes fails.
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
            _train(recipe, folder, world, says=under_torchrun)
    return folder / "model"


def _train(recipe: Recipe, folder: Path, world: World, says: bool = False) -> None:
    """In a folder that is claimed; ProcessFailed where a signal stopped it. `says` where, as under torchrun, nobody is
    there to tell its end."""
    spec = KINDS[recipe.kind]
    run = lookup(spec.build)(recipe, folder, world)
    loader = lookup(spec.loader)(recipe, run, world)
    export = lookup(spec.export)
    run.on_start = lambda: _begin(recipe, run, folder)
    run.on_export = lambda target: export(recipe, run, trainer, target)
    run.tensorboard = find_spec("tensorboard") is not None
    with closing(loader):
        trainer = Trainer(run, loader, recipe.training, folder, world=world)
        finished = trainer.fit().finished
    if says and finished and world.is_main:
        print(f"trained: {folder / 'model'}")
    finish(world, 0 if finished else STOPPED)
    if not finished:
        raise ProcessFailed(STOPPED)


def _begin(recipe: Recipe, run: Run, folder: Path) -> None:
    """Write the recipe, and what loading a step needs, into `folder`."""
    write_recipe(folder, recipe)
    if setup := KINDS[recipe.kind].setup:
        lookup(setup)(recipe, run, folder / SETUP)


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
