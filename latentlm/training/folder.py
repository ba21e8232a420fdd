"""The folder of a run: who may train in it, and the recipe that lies there.

Place in the flow: below `run.py` and the demo, which ask here before they write anything into a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from ..config import Recipe

RECIPE = "recipe.yaml"


def claim(folder: Path, resume: bool) -> None:
    """Make `folder`; ValueError where it holds a run that is not to be resumed. Without a checkpoint it is free."""
    if (folder / "checkpoints").exists() and not resume:
        raise ValueError(f"{folder}: already holds a run; resume it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Put `recipe` into `folder`, whole or not at all: other processes may be reading the one before it."""
    temporary = folder / f"{RECIPE}.tmp"
    temporary.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    os.replace(temporary, folder / RECIPE)
