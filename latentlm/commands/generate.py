"""`latentlm generate`: a prompt of texts and files in, one text, picture or sound out.

Place in the flow: on top; `speak.py` writes the sound, as it is made.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from ..data.script import Script
    from ..types import Audio, Image, Text

WRITTEN = {"image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"), "speech": (".wav", ".flac", ".ogg")}
"""Suffixes a result may be written to; the first is the one to recommend."""

MEANINGLESS = {
    "text": ("steps", "voice", "max-seconds"),
    "image": ("temperature", "voice", "max-tokens", "max-seconds"),
    "speech": ("max-tokens",),
}
"""Options that no result of a kind depends on."""
MAX_TOKENS = 256

SAMPLING = Group("Sampling", sort_key=2)
LIMITS = Group("Limits", sort_key=3)


def generate(
    model: str,
    prompt: Annotated[tuple[str, ...], Parameter(negative=(), metavar="PROMPT...")],
    /,
    *,
    to: Literal["image", "speech", "text"],
    out: Path | None = None,
    adapter: Path | None = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLING)] = None,
    steps: Annotated[int | None, Parameter(group=SAMPLING)] = None,
    seed: Annotated[int, Parameter(group=SAMPLING)] = 0,
    temperature: Annotated[float, Parameter(group=SAMPLING)] = 0.0,
    voice: Annotated[tuple[str, ...], Parameter(group=SAMPLING, negative=(), show_default=False)] = (),
    raw: Annotated[bool, Parameter(group=SAMPLING, negative=(), show_default=False)] = False,
    max_tokens: Annotated[int, Parameter(group=LIMITS)] = MAX_TOKENS,
    max_seconds: Annotated[float | None, Parameter(group=LIMITS)] = None,
) -> None:
    """Write, draw or say what follows a prompt.

    Parameters
    ----------
    model
        Checkpoint folder, run folder, hub id, or the packaged model "tiny".
    prompt
        Text, or the path of a picture, a sound or a text (.txt), known by its extension. Several, in order, form one
        document. A text to be spoken may be a script: lines like "Speaker 1: Good morning."
    to
        What to make.
    out
        File to write: a picture (.png), a sound (.wav) or a text. Text goes to the terminal without it.
    adapter
        Folder of a LoRA adapter of this model, or of the run that trained it.
    guidance
        Classifier-free guidance of pictures and speech; 1 is off. The model's own unless given, mostly 2.
    steps
        Solver steps for each latent. The model's own unless given, mostly 20.
    seed
        Of all noise: equal seeds give equal results.
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
    """
    from .. import load
    from ..generation.generate import Request
    from .speak import clips_by_speaker, say, speak

    check_out(out, to)
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise ValueError(f"--max-seconds must be above 0 and have an end, got {max_seconds}")
    given = {"steps": steps, "voice": voice, "temperature": temperature, "max-seconds": max_seconds}
    given["max-tokens"] = max_tokens != MAX_TOKENS
    for name in MEANINGLESS[to]:
        if given[name]:
            raise ValueError(f"--{name} has no meaning for --to {to}")
    parts = [read_part(item, to) for item in prompt]
    clips = clips_by_speaker(voice)

    pipeline = load(model, adapter=adapter, weights="raw" if raw else "ema")
    tokenizer = pipeline.tokenizers.get("speech")
    request = Request(
        pipeline.prompt(parts, to, clips.pop("", None), clips),
        to,
        guidance=guidance,
        steps=steps,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        max_latents=max(1, round(max_seconds * tokenizer.rate)) if max_seconds and tokenizer else None,
    )
    if to == "speech":
        speak(pipeline, request, out, max_seconds)
    else:
        (output,) = pipeline.generate_batch([request])
        write(output.segments[0], out)
        if output.finish_reason == "length":
            cause = "--max-tokens" if output.num_steps >= max_tokens else "the end of the model's context"
            say(f"cut after {output.num_steps} tokens by {cause}, before the text ended by itself")


def check_out(out: Path | None, to: str) -> None:
    """Before anything is loaded: the result must have a file it fits into. ValueError names it."""
    if to in WRITTEN and out is None:
        raise ValueError(f"--to {to} needs a file to write: --out answer{WRITTEN[to][0]}")
    if to in WRITTEN and out.suffix.lower() not in WRITTEN[to]:
        raise ValueError(f"--out {out}: a result of --to {to} ends in {', '.join(WRITTEN[to])}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)


def read_part(item: str, to: str) -> str | PILImage | Audio | Script:
    """A word of the command line as part of the prompt: what ends like a picture, a sound or a text is that file.

    Raises ValueError, one line, for a file that is missing, broken, or of a kind that is not read or not known.
    """
    from ..generation.files import means_file, read_file

    return read_file(item, to) if means_file(item) else item


def write(made: Text | Image, out: Path | None) -> None:
    """The answer into `out`, or a text to the terminal."""
    from ..tokenizers.media import save_image
    from ..weights import write_text

    if out is None:
        print(made.text)
        return
    if made.modality == "text":
        write_text(out, made.text + "\n")
    else:
        save_image(made.content, out)
    print(out)
