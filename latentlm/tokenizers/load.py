"""`load_tokenizer`: a continuous tokenizer from the folder that `Tokenizer.save` wrote.

Place in the flow: where a trained tokenizer comes back. No pickle: config.json says what to build, safetensors fill it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from ..config import ConvImageTokenizerConfig, ImageTokenizerConfig, SpeechTokenizerConfig, describe
from .base import Tokenizer
from .conv_image import ConvImageTokenizer
from .image import ImageTokenizer
from .speech import SpeechTokenizer
from .text import read_config

KINDS: dict[str, tuple[type[BaseModel], type[Tokenizer]]] = {
    "image": (ImageTokenizerConfig, ImageTokenizer),
    "conv_image": (ConvImageTokenizerConfig, ConvImageTokenizer),
    "speech": (SpeechTokenizerConfig, SpeechTokenizer),
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The image or speech tokenizer in `folder`, on the CPU and in eval mode.

    Raises ValueError, one line, naming the file: missing, of another format version, or with weights that do not fit.
    """
    path = Path(folder) / "config.json"
    fields = read_config(path)
    kind = fields.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{path}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    config_class, tokenizer_class = KINDS[kind]
    try:
        config = config_class.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error, config_class)}") from None
    tokenizer = tokenizer_class(config)
    tokenizer.load_weights(folder)
    return tokenizer.eval()
