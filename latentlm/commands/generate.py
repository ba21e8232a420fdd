"""`latentlm generate`: a prompt of texts and files in, texts, pictures or sounds out.

Place in the flow: on top. `prompt_words.py` reads the prompt, `answers.py` writes the answers, and `speak.py` writes
speech while it is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from ..config.modalities import modality, modality_names
from ..errors import UserError
from .answers import check_out, places, write
from .arguments import whole
from .prompt_words import read_parts, spaced

if TYPE_CHECKING:
    from ..generation.pipeline import Pipeline
    from ..generation.request import Request

TARGETS = ("text", *modality_names(), "auto")
MAX_TOKENS = 256
AT_ONCE = 32
"""Most answers generated in one batch; a larger batch takes more memory and is hardly faster."""

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
    num: Annotated[int, Parameter(converter=whole)] = 1,
    adapter: Path | None = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLING)] = None,
    steps: Annotated[int | None, Parameter(group=SAMPLING, converter=whole)] = None,
    solver: Annotated[str | None, Parameter(group=SAMPLING)] = None,
    seed: Annotated[int | Literal["random"], Parameter(group=SAMPLING, converter=whole)] = 0,
    temperature: Annotated[float, Parameter(group=SAMPLING)] = 0.0,
    voice: Annotated[tuple[str, ...], Parameter(group=SAMPLING, negative=(), show_default=False)] = (),
    raw: Annotated[bool, Parameter(group=SAMPLING, negative=(), show_default=False)] = False,
    max_tokens: Annotated[int, Parameter(group=LIMITS, converter=whole)] = MAX_TOKENS,
    max_seconds: Annotated[float | None, Parameter(group=LIMITS)] = None,
    max_latents: Annotated[int | None, Parameter(group=LIMITS, converter=whole)] = None,
    device: Annotated[str, Parameter(group=MACHINE)] = "auto",
    dtype: Annotated[Literal["auto", "fp32", "bf16"], Parameter(group=MACHINE)] = "auto",
    threads: Annotated[int | None, Parameter(group=MACHINE, converter=whole)] = None,
) -> None:
    """Continue a prompt with text, a picture or speech.

    Parameters
    ----------
    model
        The packaged model "tiny", a checkpoint folder, a run folder, or a hub id. Write ./tiny for a folder named tiny.
    prompt
        Text, or files: pictures, sounds and texts (.txt), known by their extension. Several words or files form one
        document, in order, with a space between texts. - reads text from stdin. A prompt that begins with a dash comes
        last, after --. Text to be spoken may be a script, with lines such as "Speaker 1: Good morning."
    to
        What to make. auto: the model chooses each segment itself, until it ends the document.
    out
        File to write: a picture (.png), a sound (.wav) or a text (.txt); for auto a new folder (0.txt, 1.png, …).
        Without it, text is printed.
    num
        Number of answers, with seeds SEED, SEED + 1, …; their files are apple-0.png, apple-1.png, …
    adapter
        Folder of a LoRA adapter of this model, or of the run that trained it.
    guidance
        Classifier-free guidance of pictures, speech and vectors; 1 is off. Default: the model's own, usually 2.
    steps
        Solver steps per latent. Default: the model's own, usually 20.
    solver
        dpm++2m, dpm++2m-logsnr, ddim, euler or heun. Default: the model's own, usually dpm++2m.
    seed
        Seed of all noise: equal seeds give equal results on one device. random: a new seed, which is printed.
    temperature
        Temperature of text; 0 always takes the likeliest token.
    voice
        A sound file with the voice that should speak. For a speaker of a script: 1=a.wav. May be repeated.
    raw
        Use the weights as trained, instead of their average.
    max_tokens
        Longest text, in tokens.
    max_seconds
        Longest speech, in seconds. Default: 512 latents; for a script, until the model ends it or its context is full.
    max_latents
        Longest span of speech or vectors, in latents; for speech --max-seconds is the same limit. Default: 512.
    device
        auto, cpu, cuda or cuda:N. auto is a GPU if torch sees one.
    dtype
        Precision of the model. auto is bf16 on a GPU with native bf16, else fp32.
    threads
        CPU threads. Default: as many as there are free cores.
    """
    check_out(out, to, num)
    given = {"steps": steps, "solver": solver, "voice": voice, "temperature": temperature, "max-seconds": max_seconds}
    given |= {"max-tokens": max_tokens != MAX_TOKENS, "max-latents": max_latents is not None}
    _check_limits(max_seconds, max_latents)
    _check_num(num, to, temperature)
    _check_meaning(given, to)
    targets = places(out, to, num)
    parts = read_parts(prompt, to)
    from .. import Request, load
    from ..generation.request import new_seed
    from ..hardware import choose_device, choose_dtype
    from .speak import clips_by_speaker, say

    clips = clips_by_speaker(voice)
    place = choose_device(device)
    weights = "raw" if raw else "ema"
    dtype = choose_dtype(dtype, place)
    pipeline = load(model, adapter=adapter, weights=weights, device=place, dtype=dtype, threads=threads)
    if seed == "random":
        seed = new_seed()
        say(f"--seed {seed}")
    request = Request(
        pipeline.prompt(spaced(parts, lines=to == "speech"), to, clips.pop("", None), clips),
        to,
        guidance=guidance,
        steps=steps,
        solver=solver,
        temperature=temperature,
        max_tokens=max_tokens,
        max_latents=max_latents,
        max_seconds=max_seconds,
    )
    _answer(pipeline, [replace(request, seed=seed + number) for number in range(num)], targets)


def _answer(pipeline: Pipeline, requests: Sequence[Request], targets: Sequence[Path | None]) -> None:
    """Generate the answers to `requests` and write each to its target."""
    from .speak import speak

    if requests[0].to == "speech":
        for request, target in zip(requests, targets, strict=True):
            speak(pipeline, request, target)
        return
    for start in range(0, len(requests), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        outputs = pipeline.generate_batch(requests[some])
        for output, request, target in zip(outputs, requests[some], targets[some], strict=True):
            write(output, request, target)


# --------------------------------------------------------------- checks before anything is loaded


def _check_limits(max_seconds: float | None, max_latents: int | None) -> None:
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise UserError(f"--max-seconds must be above 0 and finite, got {max_seconds}")
    if max_seconds is not None and max_latents is not None:
        raise UserError("--max-seconds and --max-latents set the same limit; give one of them")
    if max_latents is not None and max_latents < 1:
        raise UserError(f"--max-latents must be at least 1, got {max_latents}")


def _check_num(num: int, to: str, temperature: float) -> None:
    if num > 1 and to == "text" and temperature == 0:
        raise UserError(f"--num {num}: at --temperature 0 all texts would be the same; give a temperature, such as 0.8")


def _check_meaning(given: Mapping[str, Any], to: str) -> None:
    """Raise UserError for an option in `given` that has no effect with this `to`."""
    if to == "auto":
        return
    if to == "text":
        without = ["steps", "solver", "voice", "max-seconds", "max-latents"]
    else:
        of_fixed_grids = ["temperature", "max-latents"] * (not modality(to).ends_itself)
        without = [*of_fixed_grids, *["voice", "max-seconds"] * (to != "speech"), "max-tokens"]
    for name in without:
        if given[name]:
            raise UserError(f"--{name} has no meaning for --to {to}")
