"""Speech: mono sound, in as many latents as its length needs; the model ends it. A second tokenizer may give features.

Place in the flow: a plug, found by `config/modalities.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from ..config import SpeechTokenizerConfig
from ..errors import UserError
from ..media.sound import SUFFIXES, Audio, decode_audio, load_audio, save_audio
from ..tokenizers.speech import SpeechTokenizer
from ..types import Latents, MediaSegment, Modality


@dataclass(frozen=True)
class Speech(MediaSegment):
    """A sound: an `Audio`, the path of a file, or `Latents`. UserError for anything else."""

    content: Audio | str | os.PathLike | Latents
    modality = "speech"

    @staticmethod
    def medium(content: Audio | str | os.PathLike) -> Audio:
        if isinstance(content, str | os.PathLike):
            return load_audio(content)
        if not isinstance(content, Audio):
            raise UserError(f"Speech takes an Audio, the path of a file or Latents, not {type(content).__name__}")
        return content


MODALITY = Modality(
    name="speech",
    segment=Speech,
    tokenizers={"speech": (SpeechTokenizerConfig, SpeechTokenizer)},
    suffixes=SUFFIXES,
    written=(".wav", ".flac", ".ogg"),
    load=load_audio,
    save=save_audio,
    decode=decode_audio,
    is_medium=lambda medium: isinstance(medium, Audio),
    describe=lambda audio: f"{audio.seconds:.2f} s",
    show=lambda audio: audio,
    digest=lambda audio: np.int64(audio.sample_rate).tobytes() + audio.samples.numpy().tobytes(),
    length=lambda audio: audio.seconds,
    ends_itself=True,
    second="semantic",
)
