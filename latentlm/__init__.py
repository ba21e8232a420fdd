"""LatentLM: one causal Transformer that reads and writes text, images and speech by next-token diffusion.

The public names, nothing else. They arrive on first use, so that `import latentlm` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .generation.pipeline import load
    from .generation.request import Request
    from .types import Audio, Document, Image, Speech, Text

__version__ = "0.1.0"
__all__ = ["Audio", "Document", "Image", "Request", "Speech", "Text", "__version__", "load"]

_HOMES = dict.fromkeys(("Audio", "Document", "Image", "Speech", "Text"), ".types")
_HOMES |= {"Request": ".generation.request", "load": ".generation.pipeline"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
