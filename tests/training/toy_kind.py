"""A kind of recipe that the package does not know: a linear map, learnt from numbers. Registered by one record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from adversarial_run import Density
from torch import Tensor, nn

from latentlm.config import FORMAT_VERSION, Config, TrainingConfig
from latentlm.config.kinds import TrainSpec
from latentlm.training.distributed import World
from latentlm.training.objective import Run
from latentlm.weights import load_weights, write_text


class ToyRecipe(Config):
    kind: Literal["toy"] = "toy"
    description: str = ""
    width: int = 4
    slope: float = 3.0
    training: TrainingConfig = TrainingConfig()


class Line(nn.Module):
    """x (B, 1) -> slope · x (B, 1), by way of `width`."""

    def __init__(self, width: int, slope: float):
        super().__init__()
        self.slope = slope
        self.net = nn.Sequential(nn.Linear(1, width), nn.Linear(width, 1))

    def forward(self, batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"error": (self.net(batch.values) - self.slope * batch.values).square().sum()}


@dataclass(kw_only=True)
class ToyRun(Run):
    recipe: ToyRecipe


def build(recipe: ToyRecipe, folder: Path, world: World) -> ToyRun:
    torch.manual_seed(recipe.training.seed)
    return ToyRun(
        model=Line(recipe.width, recipe.slope), recipe=recipe, identity={"width": recipe.width}, unit="examples"
    )


def loader(recipe: ToyRecipe, run: ToyRun, world: World) -> Density:
    return Density(recipe.training.global_micro_batches, world)


def export(recipe: ToyRecipe, run: ToyRun, trainer, folder: Path) -> None:
    fields = {"format_version": FORMAT_VERSION, "kind": "line", "width": recipe.width, "slope": recipe.slope}
    write_text(folder / "config.json", json.dumps(fields))


def load(folder: Path, *, adapter, weights: str, device: torch.device, dtype: torch.dtype) -> Line:
    fields = json.loads((folder / "config.json").read_text())
    model = Line(fields["width"], fields["slope"])
    load_weights(folder / ("ema.safetensors" if weights == "ema" else "model.safetensors"), model)
    return model.to(device, dtype)


TOY = TrainSpec(
    config=ToyRecipe,
    build="toy_kind:build",
    loader="toy_kind:loader",
    export="toy_kind:export",
    load="toy_kind:load",
    folders=("line",),
)
