"""`latentlm generate`: a prompt of texts and files in, one text, picture or sound out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from ..types import Audio

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
WRITTEN = {"image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"), "speech": (".wav", ".flac", ".ogg")}
"""Suffixes a result may be written to; the first is the one to recommend."""

DEFAULT_GUIDANCE = 2.0

SAMPLING = Group("Sampling", sort_key=2)
LIMITS = Group("Limits", sort_key=3)


def generate(
    model: str,
    prompt: Annotated[tuple[str, ...], Parameter(negative=(), metavar="PROMPT...")],
    /,
    *,
    to: Literal["image", "speech", "text"],
    out: Path | None = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLING)] = None,
    steps: Annotated[int, Parameter(group=SAMPLING)] = 20,
    seed: Annotated[int, Parameter(group=SAMPLING)] = 0,
    temperature: Annotated[float, Parameter(group=SAMPLING)] = 0.0,
    voice: Annotated[Path | None, Parameter(group=SAMPLING)] = None,
    raw: Annotated[bool, Parameter(group=SAMPLING, negative=(), show_default=False)] = False,
    max_tokens: Annotated[int, Parameter(group=LIMITS)] = 256,
    max_seconds: Annotated[float | None, Parameter(group=LIMITS)] = None,
) -> None:
    """Write, draw or say what follows a prompt.

    Parameters
    ----------
    model
        Checkpoint folder, run folder, hub id, or the packaged model "tiny".
    prompt
        Text, or the path of a picture or a sound, known by its extension. Several, in order, form one document.
    to
        What to make.
    out
        File to write: a picture (.png), a sound (.wav) or a text. Text goes to the terminal without it.
    guidance
        Classifier-free guidance of pictures and speech, 2 unless given; 1 is off.
    steps
        Solver steps for each latent.
    seed
        Of all noise: equal seeds give equal results.
    temperature
        Of text; 0 always takes the likeliest token.
    voice
        A sound file whose voice the speech should have.
    raw
        Take the weights as trained, not their average.
    max_tokens
        Longest text, in tokens.
    max_seconds
        Longest speech, in seconds.
    """
    from .. import load
    from ..tokenizers.media import load_audio

    check_out(out, to)
    if max_seconds is not None and max_seconds <= 0:
        raise ValueError(f"--max-seconds must be above 0, got {max_seconds}")
    parts = [read_part(item) for item in prompt]
    clip = None if voice is None else load_audio(voice)

    pipeline = load(model, weights="raw" if raw else "ema")
    limits: dict[str, int] = {"max_tokens": max_tokens}
    if max_seconds is not None and "speech" in pipeline.tokenizers:
        limits["max_latents"] = max(1, round(max_seconds * pipeline.tokenizers["speech"].rate))
    if guidance is None:
        guidance = 1.0 if to == "text" else DEFAULT_GUIDANCE
    sampling = {"guidance": guidance, "steps": steps, "seed": seed, "temperature": temperature, "voice": clip}
    (made,) = pipeline.generate(parts, to, **sampling, **limits)
    write(made, to, out)


def check_out(out: Path | None, to: str) -> None:
    """Before anything is loaded: the result must have a file it fits into. ValueError names it."""
    if to in WRITTEN and out is None:
        raise ValueError(f"--to {to} needs a file to write: --out answer{WRITTEN[to][0]}")
    if to in WRITTEN and out.suffix.lower() not in WRITTEN[to]:
        raise ValueError(f"--out {out}: a result of --to {to} ends in {', '.join(WRITTEN[to])}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)


def read_part(item: str) -> str | PILImage | Audio:
    """A word of the command line as prompt: what ends like a picture or a sound is one, and must exist."""
    from ..tokenizers.media import load_audio, load_image

    suffix = Path(item).suffix.lower()
    if suffix in PICTURES:
        return load_image(item)
    return load_audio(item) if suffix in SOUNDS else item


def write(made: str | PILImage | Audio, to: str, out: Path | None) -> None:
    """The answer into `out`, or a text to the terminal."""
    from ..evaluation.report import write_text
    from ..tokenizers.media import save_audio, save_image

    if out is None:
        print(made)
        return
    if to == "text":
        write_text(out, made + "\n")
    elif to == "image":
        save_image(made, out)
    else:
        save_audio(made, out)
    print(out)
