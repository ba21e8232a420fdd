"""`latentlm convert`: checkpoints of other projects to ours, and language models back."""

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
    """Convert a checkpoint of another project to one of latentlm; docs/interop.md says what each format needs.

    Weights are written in the dtype that most of the values have. Quantised weights (integers, fp8) are refused.

    Parameters
    ----------
    source
        Folder or file of the checkpoint, or a hub id.
    target
        New folder for the result.
    format
        Format of the source.
    to
        Format of the result: a model of latentlm, or a language model for transformers.
    image_size
        Width and height in pixels of the pictures that an image tokenizer reads; default: read from its files.
    calibrate
        Pictures on which to measure the scale of an image tokenizer's latents: an embedded source or a JSONL manifest.
    tokenizer
        Text tokenizer (tokenizer.json of Qwen2.5) for a VibeVoice checkpoint that has none.
    """
    from ..interop.convert import Conversion
    from ..interop.convert import convert as run

    run(Conversion(source, image_size, calibrate, tokenizer), target, format, to)
    if format == "diffusers-vae" and calibrate is None:
        print(f"{target}: not calibrated yet; --calibrate PICTURES measures its latents")
    else:
        print(target)
