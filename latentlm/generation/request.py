"""What a user asks of a model: a request, what it leaves open, and what is wrong with it.

Place in the flow: 4, in front of `pipeline.py`, which makes it an `ActiveRequest` of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config import SamplingConfig
from ..config.base import did_you_mean
from ..config.modalities import modality_names
from ..diffusion import SOLVERS
from ..errors import UserError
from ..tokenizers.text import TextTokenizer

if TYPE_CHECKING:
    from .prompts import Prompt

TARGETS = ("text", *modality_names(), "auto")

USUAL_LIMIT = 512
"""Latents of a span that the model ends itself, unless a request says otherwise. A script has the context alone."""


@dataclass(frozen=True)
class Request:
    """One thing to generate. `to` "auto" lets the model choose what follows, until it ends the document.

    prompt: whatever `Pipeline.generate` takes; a Document is taken exactly as it is.
    guidance, steps, solver (of `diffusion.SOLVERS`): None is the model's own, `config.sampling`; text has no guidance.
    max_latents: of a span that the model ends itself; None is 512, or for models that read scripts as much as the
    context holds. A limit that is given is also the size that the cache has from the start.
    """

    prompt: Prompt
    to: str
    guidance: float | None = None
    steps: int | None = None
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 256
    max_latents: int | None = None
    solver: str | None = None


def with_defaults(request: Request, own: SamplingConfig) -> Request:
    """`request` with the model's own sampling where it says nothing."""
    guidance = 1.0 if request.to == "text" else own.guidance
    return replace(
        request,
        guidance=guidance if request.guidance is None else request.guidance,
        steps=own.steps if request.steps is None else request.steps,
        solver=own.solver if request.solver is None else request.solver,
    )


def check_solver(name: str) -> None:
    """UserError, one line, for a solver that there is not."""
    if name not in SOLVERS:
        raise UserError(f"solver {name!r} is unknown{did_you_mean(name, SOLVERS)}")


def check(request: Request, modalities: Collection[str], text: TextTokenizer) -> None:
    """UserError, one line, for what a model of these modalities cannot do with a settled request."""
    if request.to not in TARGETS:
        raise UserError(f"unknown target {request.to!r}{did_you_mean(request.to, TARGETS)}")
    if request.to not in ("text", "auto") and request.to not in modalities:
        raise UserError(f"this model has no {request.to}; it has {', '.join(('text', *modalities))}")
    if request.to in ("text", "auto") and text.is_classes:
        raise UserError(f"this model makes pictures of classes; it writes no text (--to {request.to})")
    for name in ("steps", "max_tokens", "max_latents"):
        if getattr(request, name) is not None and getattr(request, name) < 1:
            raise UserError(f"{name} must be at least 1, got {getattr(request, name)}")
    check_solver(request.solver)
    if not -(2**63) <= request.seed < 2**64:
        raise UserError(f"seed must be at least -2**63 and below 2**64, got {request.seed}")
    if not 0 <= request.guidance < math.inf:
        raise UserError(f"guidance must be a number from 0 on, got {request.guidance}")
    if request.to == "text" and request.guidance != 1.0:
        raise UserError(f"guidance {request.guidance} has no meaning for text; it is for {', '.join(modality_names())}")
    if not 0 <= request.temperature < math.inf:
        raise UserError(f"temperature must be a number from 0 on, got {request.temperature}")
