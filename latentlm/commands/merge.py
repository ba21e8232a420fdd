"""`latentlm merge`: a model and a LoRA adapter become one model, which loads like any other."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError


def merge(model: str, adapter: Path, /, *, out: Path) -> None:
    """Write a model with a LoRA adapter merged into its weights.

    Parameters
    ----------
    model
        Checkpoint folder, run folder, hub id or packaged model that the adapter was trained on.
    adapter
        Folder of the adapter, or of the run that trained it.
    out
        Folder for the merged model.
    """
    import torch

    from .. import load

    if out.exists():
        raise UserError(f"--out {out}: is already there")
    pipeline = load(model, adapter=adapter, device="cpu", dtype=torch.float32)
    pipeline.metadata["adapter"] = str(adapter)
    print(pipeline.save(out))
