"""`latentlm convert`: checkpoints of other projects into ours, and language models back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

TOKENIZERS = Group("Tokenizers", sort_key=2)


def convert(
    source: str,
    target: Path,
    /,
    *,
    format: Annotated[
        Literal["hf-llm", "vibevoice", "vibevoice-original", "unilm", "diffusers-vae", "latentlm"], Parameter("--from")
    ],
    to: Literal["latentlm", "hf-llm"] = "latentlm",
    image_size: Annotated[int | None, Parameter(group=TOKENIZERS)] = None,
    calibrate: Annotated[str | None, Parameter(group=TOKENIZERS)] = None,
    tokenizer: Annotated[str | None, Parameter(group=TOKENIZERS)] = None,
) -> None:
    """Turn the checkpoint of another project into one of ours; docs/interop.md says what each format needs.

    Parameters
    ----------
    source
        Folder or file of the checkpoint, or a hub id.
    target
        New folder for the result.
    format
        What the source is.
    to
        What to make of it: a checkpoint of ours, or a language model for transformers.
    image_size
        Side of the pictures that an image tokenizer reads, instead of what its files say.
    calibrate
        Measure the latents of an image tokenizer on these pictures: an embedded source, or a JSONL manifest.
    tokenizer
        The tokenizer.json of the text of a VibeVoice checkpoint that has none: Qwen2.5's.
    """
    from ..interop.convert import Conversion
    from ..interop.convert import convert as run

    run(Conversion(source, image_size, calibrate, tokenizer), target, format, to)
    if format == "diffusers-vae" and calibrate is None:
        print(f"{target}: not calibrated yet; --calibrate PICTURES measures its latents")
    else:
        print(target)
