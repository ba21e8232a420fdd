"""`latentlm generate`: a prompt of texts and files in, texts, pictures or sounds out.

Place in the flow: on top; `answers.py` writes what comes out, `speak.py` the sound, as it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from ..config.modalities import modality, modality_names
from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from ..data.script import Script
    from ..media.sound import Audio

TARGETS = ("text", *modality_names(), "auto")
MAX_TOKENS = 256
AT_ONCE = 32
"""Answers that are made together; more would only take more memory."""

SAMPLING = Group("Sampling", sort_key=2)
LIMITS = Group("Limits", sort_key=3)
MACHINE = Group("Machine", sort_key=4)


def generate(
    model: str,
    prompt: Annotated[tuple[str, ...], Parameter(negative=(), metavar="PROMPT...")],
    /,
    *,
    to: Literal[TARGETS],
    out: Path | None = None,
    num: int = 1,
    adapter: Path | None = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLING)] = None,
    steps: Annotated[int | None, Parameter(group=SAMPLING)] = None,
    solver: Annotated[str | None, Parameter(group=SAMPLING)] = None,
    seed: Annotated[int, Parameter(group=SAMPLING)] = 0,
    temperature: Annotated[float, Parameter(group=SAMPLING)] = 0.0,
    voice: Annotated[tuple[str, ...], Parameter(group=SAMPLING, negative=(), show_default=False)] = (),
    raw: Annotated[bool, Parameter(group=SAMPLING, negative=(), show_default=False)] = False,
    max_tokens: Annotated[int, Parameter(group=LIMITS)] = MAX_TOKENS,
    max_seconds: Annotated[float | None, Parameter(group=LIMITS)] = None,
    max_latents: Annotated[int | None, Parameter(group=LIMITS)] = None,
    device: Annotated[str, Parameter(group=MACHINE)] = "auto",
    dtype: Annotated[Literal["auto", "fp32", "bf16"], Parameter(group=MACHINE)] = "auto",
) -> None:
    """Write, draw or say what follows a prompt.

    Parameters
    ----------
    model
        Checkpoint folder, run folder, hub id, or the packaged model "tiny".
    prompt
        Text, or the path of a picture, a sound or a text (.txt), known by its extension. Several, in order, form one
        document; between two texts comes a space. A text to be spoken may be a script: lines like
        "Speaker 1: Good morning."
    to
        What to make; auto lets the model choose, segment by segment, until it ends.
    out
        File to write: a picture (.png), a sound (.wav) or a text; for auto a new folder (0.txt, 1.png, 2.wav, …). Text
        goes to the terminal without it.
    num
        Answers to make, of seeds SEED, SEED + 1, …; several go into apple-0.png, apple-1.png, …
    adapter
        Folder of a LoRA adapter of this model, or of the run that trained it.
    guidance
        Classifier-free guidance of pictures and speech; 1 is off. The model's own unless given, mostly 2.
    steps
        Solver steps for each latent. The model's own unless given, mostly 20.
    solver
        dpm++2m, dpm++2m-logsnr, ddim, euler or heun. The model's own unless given, mostly dpm++2m.
    seed
        Of all noise: equal seeds give equal results, on one device.
    temperature
        Of text; 0 always takes the likeliest token.
    voice
        A sound file whose voice the speech should have; of a speaker in a script: 1=a.wav. May be repeated.
    raw
        Take the weights as trained, not their average.
    max_tokens
        Longest text, in tokens.
    max_seconds
        Longest speech, in seconds. Without it, a script lasts until the model ends it or its context is full.
    max_latents
        Longest span of vectors, or of anything else that the model ends by itself, in latents; 512 unless given.
    device
        auto, cpu, cuda or cuda:N; auto is a GPU where torch sees one.
    dtype
        Of the model; auto is bf16 on a GPU that multiplies it, else fp32.
    """
    from .. import Request, load
    from ..hardware import choose_device, choose_dtype
    from .answers import places, write
    from .speak import clips_by_speaker, speak

    targets = places(out, to, num)
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise UserError(f"--max-seconds must be above 0 and have an end, got {max_seconds}")
    given = {"steps": steps, "solver": solver, "voice": voice, "temperature": temperature, "max-seconds": max_seconds}
    given["max-tokens"] = max_tokens != MAX_TOKENS
    given["max-latents"] = max_latents is not None
    for name in _without_meaning(to):
        if given[name]:
            raise UserError(f"--{name} has no meaning for --to {to}")
    if max_seconds is not None and max_latents is not None:
        raise UserError("--max-seconds and --max-latents are one limit; give one of them")
    if max_latents is not None and max_latents < 1:
        raise UserError(f"--max-latents must be at least 1, got {max_latents}")
    parts = [read_part(item, to) for item in prompt]
    clips = clips_by_speaker(voice)

    place = choose_device(device)
    weights = "raw" if raw else "ema"
    pipeline = load(model, adapter=adapter, weights=weights, device=place, dtype=choose_dtype(dtype, place))
    tokenizer = pipeline.tokenizers.get("speech")
    request = Request(
        pipeline.prompt(spaced(parts, lines=to == "speech"), to, clips.pop("", None), clips),
        to,
        guidance=guidance,
        steps=steps,
        solver=solver,
        temperature=temperature,
        max_tokens=max_tokens,
        max_latents=max(1, round(max_seconds * tokenizer.rate)) if max_seconds and tokenizer else max_latents,
    )
    requests = [replace(request, seed=seed + number) for number in range(num)]
    if to == "speech":
        for one, target in zip(requests, targets, strict=True):
            speak(pipeline, one, target, max_seconds)
        return
    for start in range(0, num, AT_ONCE):
        some = slice(start, start + AT_ONCE)
        for output, target in zip(pipeline.generate_batch(requests[some]), targets[some], strict=True):
            write(output, request, target)


def _without_meaning(to: str) -> list[str]:
    """Options that no result of a kind depends on."""
    if to == "auto":
        return []
    if to == "text":
        return ["steps", "solver", "voice", "max-seconds", "max-latents"]
    of_fixed_grids = ["temperature", "max-latents"] * (not modality(to).ends_itself)
    of_speech = ["max-latents"] if to == "speech" else ["voice", "max-seconds"]
    return [*of_fixed_grids, *of_speech, "max-tokens"]


def read_part(item: str, to: str) -> str | PILImage | Audio | Script:
    """A word of the command line as part of the prompt: what ends like a picture, a sound or a text is that file.

    Raises UserError, one line, for a file that is missing, broken, or of a kind that is not read or not known.
    """
    from ..generation.prompts import means_file, read_file

    return read_file(item, to) if means_file(item) else item


def spaced(
    parts: Sequence[str | PILImage | Audio | Script], lines: bool = False
) -> list[str | PILImage | Audio | Script]:
    """`parts` with texts that follow each other as one, with a space in between unless there is white space already.

    lines: a text of several words begins a line of its own, as in "Speaker 1: Hello." "Speaker 2: Good morning.".
    """
    joined: list[str | PILImage | Audio | Script] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            gap = " " if joined[-1][-1:].strip() and part[:1].strip() else ""
            joined[-1] += ("\n" if lines and len(part.split()) > 1 else gap) + part
        else:
            joined.append(part)
    return joined
