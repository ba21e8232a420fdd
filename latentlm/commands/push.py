"""`latentlm push`: a model to the Hugging Face hub, from where `load("OWNER/NAME")` reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError


def push(
    model: str,
    name: str,
    /,
    *,
    private: bool = False,
    token: str | None = None,
    evaluation: Path | None = None,
) -> None:
    """Upload a model with its model card to the Hugging Face hub.

    A README.md in the model's folder is uploaded as it is; without one a model card is written.

    Parameters
    ----------
    model
        Checkpoint folder, run folder, hub id or packaged model. For a run, the averaged weights are uploaded.
    name
        Name on the hub: OWNER/NAME. A missing repository is created.
    private
        Make a new repository private.
    token
        Access token of the hub; by default HF_TOKEN, or the token that `hf auth login` has stored.
    evaluation
        JSON file that `latentlm evaluate` wrote: its figures go into the model card.
    """
    from ..checkpoint import resolve
    from ..generation.model_card import CARD, write_card
    from ..hub import check_name, to_hub

    check_name(name)
    source = resolve(model)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _copy(source, folder)
        if evaluation is None and (source / CARD).is_file():
            shutil.copy(source / CARD, folder)
        else:
            write_card(folder, evaluation)
        print(to_hub(folder, name, private=private, token=token))


def _copy(source: Path, target: Path) -> None:
    """Copy a model to `target`: its config, tokenizers and averaged weights. Raises UserError if it is no model."""
    from .. import load
    from ..checkpoint import kind_of
    from ..run_folder import is_step

    spec = kind_of(source)
    if spec.no_model:
        raise UserError(f"{source}: {spec.no_model}")
    if is_step(source):
        load(source).save(target)
        return
    target.mkdir()
    averaged = source / "ema.safetensors"
    shutil.copy(source / "config.json", target)
    shutil.copytree(source / "tokenizers", target / "tokenizers")
    shutil.copy(averaged if averaged.is_file() else source / "model.safetensors", target / "model.safetensors")
