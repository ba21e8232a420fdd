"""`load_tokenizer`: a continuous tokenizer from the folder that `Tokenizer.save` wrote.

Place in the flow: 1, beside `base.py`. No pickle: the network is built from config.json and filled from safetensors.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ..config import describe
from ..config.modalities import tokenizer_kinds
from ..errors import UserError
from .base import Tokenizer
from .text import read_config


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The continuous tokenizer in `folder`, on the CPU and in eval mode.

    Raises UserError, which names the file, if one is missing, has another format version, or does not fit the config.
    """
    path = Path(folder) / "config.json"
    fields = read_config(path)
    kind, kinds = fields.get("kind"), tokenizer_kinds()
    if kind not in kinds:
        raise UserError(f"{path}: kind is {kind!r}, expected one of {', '.join(kinds)}")
    config_class, tokenizer_class = kinds[kind]
    try:
        config = config_class.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, config_class)}") from None
    tokenizer = tokenizer_class(config)
    tokenizer.load_weights(folder)
    return tokenizer.eval()
