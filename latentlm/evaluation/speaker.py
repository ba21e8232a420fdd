"""Speaker similarity of two clips, by the speaker encoder of resemblyzer (optional dependency).

Place in the flow: clips ──▶ cosine of their embeddings ──▶ `spoken.py`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import UserError
from ..media.sound import Audio

SAMPLE_RATE = 16000


def available() -> bool:
    """Whether resemblyzer is installed."""
    return find_spec("resemblyzer") is not None


def speaker_similarity(first: Audio, second: Audio) -> float:
    """The cosine of the speaker embeddings of two clips, 0 to 1; 0 where a clip is empty or silent.

    Raises UserError where resemblyzer is not installed.
    """
    from ..media.sound import resample

    embeddings = []
    for clip in (first, second):
        samples = resample(clip, SAMPLE_RATE).samples.detach().float().cpu().numpy()
        if not np.abs(samples).max(initial=0.0):
            return 0.0
        embeddings.append(np.asarray(_encoder().embed_utterance(samples)))
    return float(embeddings[0] @ embeddings[1])


@cache
def _encoder() -> Any:
    if not available():
        raise UserError("speaker similarity needs resemblyzer: pip install resemblyzer")
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)
