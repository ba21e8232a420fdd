"""A checkpoint directory with bf16 weights of the averaged model alone: half the size, for a package or a download.

    python -m latentlm.generation.shrink runs/tiny/model latentlm/pretrained/tiny

Place in the flow: 4, after training; `load` reads the result like any other and computes in the dtype it is asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..weights import save_weights
from .pretrained import load, read_metadata, write_config


def shrink(source: str | Path, target: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the averaged weights of `source` and its tokenizers to `target` in `dtype`. ValueError as in `load`."""
    pipeline = load(source)
    target = Path(target)
    write_config(target, pipeline.model, pipeline.tokenizers, read_metadata(source))
    save_weights(target / "model.safetensors", pipeline.model.state_dict(), dtype)
    for name, tokenizer in pipeline.tokenizers.items():
        if isinstance(tokenizer, torch.nn.Module):
            save_weights(target / "tokenizers" / name / "model.safetensors", tokenizer.state_dict(), dtype)


if __name__ == "__main__":
    shrink(*sys.argv[1:])
