"""Media ↔ latents, text ↔ ids. Read `base.py`, then `sigma_vae.py`, then `image.py` or `speech.py`."""

from .base import Calibration, Tokenizer
from .conv_image import ConvImageTokenizer
from .image import ImageTokenizer
from .load import load_tokenizer
from .losses import loss_weights
from .speech import SpeechTokenizer
from .text import SpecialTokens, TextTokenizer

__all__ = [
    "Calibration",
    "ConvImageTokenizer",
    "ImageTokenizer",
    "SpecialTokens",
    "SpeechTokenizer",
    "TextTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "loss_weights",
]
