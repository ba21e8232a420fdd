"""LatentLM: one causal Transformer that reads and writes text, images and speech by next-token diffusion.

Defines the public names. Each is imported on first use, so that `import latentlm` is fast.
"""

import importlib
from typing import TYPE_CHECKING

from .openmp import choose_spinning

if TYPE_CHECKING:
    from .errors import UserError
    from .generation.pipeline import load
    from .generation.request import Request
    from .media.sound import Audio
    from .modalities.image import Image
    from .modalities.speech import Speech
    from .modalities.vectors import Vectors
    from .types import Document, Text

choose_spinning()

__version__ = "0.1.0"
__all__ = ["Audio", "Document", "Image", "Request", "Speech", "Text", "UserError", "Vectors", "__version__", "load"]

_HOMES = dict.fromkeys(("Document", "Text"), ".types") | {"Audio": ".media.sound"}
_HOMES |= {name: f".modalities.{name.lower()}" for name in ("Image", "Speech", "Vectors")}
_HOMES |= {"Request": ".generation.request", "load": ".generation.pipeline", "UserError": ".errors"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
