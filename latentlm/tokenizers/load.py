"""`load_tokenizer`: a continuous tokenizer from the folder that `Tokenizer.save` wrote.

Place in the flow: where a trained tokenizer comes back. No pickle: config.json says what to build, safetensors fill it.
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

    Raises UserError, one line, naming the file: missing, of another format version, or with weights that do not fit.
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
