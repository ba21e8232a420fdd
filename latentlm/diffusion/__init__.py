"""The maths of diffusion, without networks: noise schedules, parametrisations, solvers (PAPER §1.2, §1.4)."""

from .parametrization import convert, to_epsilon, to_x0, training_target
from .schedule import DiffusionProcess, Level
from .solvers import SOLVERS, Evaluation, Plan, make_plan, sample

__all__ = [
    "SOLVERS",
    "DiffusionProcess",
    "Evaluation",
    "Level",
    "Plan",
    "convert",
    "make_plan",
    "sample",
    "to_epsilon",
    "to_x0",
    "training_target",
]
