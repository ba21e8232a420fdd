"""Requests for generation: their options, defaults and checks.

Place in the flow: 4, in front of `pipeline.py`, which makes each an `ActiveRequest` of the engine.
"""

from __future__ import annotations

import math
import numbers
import operator
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

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
"""Default limit of a span that the model ends itself, in latents. Models that read scripts have only the context's."""


@dataclass(frozen=True)
class Request:
    """One answer to generate: the prompt, the target, and the options of sampling.

    prompt: one prompt as `Pipeline.generate` takes it, never a batch; a Document is used as it is.
    to: "text", a modality, or "auto": the model chooses each segment, until it ends the document.
    guidance, steps, solver (of `diffusion.SOLVERS`): None is the model's own, `config.sampling`; text has no guidance.
    seed: seed of all noise; None draws a new one.
    temperature: for text; 0 takes the likeliest token.
    max_latents: limit of a span that the model ends itself. None: 512, or for models that read scripts the context. The
    cache has room for a given limit from the start.
    max_seconds: the same limit for speech, in seconds; give one of the two.
    """

    prompt: Prompt
    to: str
    guidance: float | None = None
    steps: int | None = None
    seed: int | None = 0
    temperature: float = 0.0
    max_tokens: int = 256
    max_latents: int | None = None
    solver: str | None = None
    max_seconds: float | None = None


def with_defaults(request: Request, own: SamplingConfig) -> Request:
    """`request` with fields that are None replaced by the model's own sampling, and by a new seed."""
    guidance = 1.0 if request.to == "text" else own.guidance
    return replace(
        request,
        guidance=guidance if request.guidance is None else request.guidance,
        steps=own.steps if request.steps is None else request.steps,
        solver=own.solver if request.solver is None else request.solver,
        seed=new_seed() if request.seed is None else request.seed,
    )


def latent_limit(request: Request, tokenizers: Mapping[str, Any], layout: str) -> int | None:
    """The most latents of a span that the model ends itself; None: up to the end of the context.

    layout: `prompt` of the model's config.
    """
    if request.max_seconds is not None:
        return max(1, round(request.max_seconds * tokenizers["speech"].rate))
    return request.max_latents or (None if layout == "script" else USUAL_LIMIT)


def new_seed() -> int:
    """A random seed, short enough to be copied: below 2**32."""
    return secrets.randbelow(2**32)


def check_solver(name: str) -> None:
    """Raise UserError for an unknown solver."""
    if name not in SOLVERS:
        raise UserError(f"solver {name!r} is unknown{did_you_mean(str(name), SOLVERS)}")


def check_num(num: int, to: str, temperature: float) -> None:
    """Raise UserError for a number of answers below 1, and for several texts at temperature 0, which would be equal."""
    check_whole("num", num)
    if num < 1:
        raise UserError(f"num must be at least 1, got {num}")
    if num > 1 and to == "text" and temperature == 0:
        raise UserError(f"at temperature 0 all {num} texts would be the same; give a temperature, such as 0.8")


def check_whole(name: str, value: int) -> None:
    """Raise UserError unless `value` is a whole number."""
    try:
        operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {value!r}") from None


def check_number(name: str, value: float) -> None:
    """Raise UserError unless `value` is a finite number from 0 on."""
    if not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < math.inf:
        raise UserError(f"{name} must be a number from 0 on, got {value}")


def check(request: Request, modalities: Collection[str], text: TextTokenizer) -> None:
    """Raise UserError for wrong values, and for what a model with `modalities` cannot do; after `with_defaults`."""
    if request.to not in TARGETS:
        raise UserError(f"unknown target {request.to!r}{did_you_mean(str(request.to), TARGETS)}")
    if request.to not in ("text", "auto") and request.to not in modalities:
        raise UserError(f"this model has no {request.to}; it has {', '.join(('text', *modalities))}")
    if request.to in ("text", "auto") and text.is_classes:
        raise UserError(
            f"this model makes pictures of classes; it writes no text, so to={request.to!r} is not possible"
        )
    for name in ("steps", "max_tokens", "max_latents"):
        value = getattr(request, name)
        if value is not None:
            check_whole(name, value)
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
    check_solver(request.solver)
    check_whole("seed", request.seed)
    if not -(2**63) <= request.seed < 2**64:
        raise UserError(f"seed must be at least -2**63 and below 2**64, got {request.seed}")
    check_number("guidance", request.guidance)
    if request.to == "text" and request.guidance != 1.0:
        raise UserError(f"guidance {request.guidance} has no meaning for text; it is for {', '.join(modality_names())}")
    check_number("temperature", request.temperature)
    if request.max_seconds is not None:
        _check_seconds(request, modalities)


def _check_seconds(request: Request, modalities: Collection[str]) -> None:
    check_number("max_seconds", request.max_seconds)
    if request.max_seconds == 0:
        raise UserError("max_seconds must be above 0, got 0")
    if request.max_latents is not None:
        raise UserError("max_seconds and max_latents set the same limit; give one of them")
    if request.to not in ("speech", "auto"):
        raise UserError(f"max_seconds has no meaning for {request.to}; it is for speech")
    if "speech" not in modalities:
        raise UserError("max_seconds is for speech, and this model has none")
