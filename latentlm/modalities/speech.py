"""Speech: mono sound, as many latents as it lasts; the model ends it. A second tokenizer may hear what was said.

Place in the flow: a plug, found by `config/modalities.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import SpeechTokenizerConfig
from ..errors import UserError
from ..media.sound import Audio, decode_audio, load_audio, save_audio
from ..tokenizers.speech import SpeechTokenizer
from ..types import Latents, Modality, Segment


@dataclass(frozen=True)
class Speech(Segment):
    """A sound, or its latents."""

    content: Audio | Latents
    modality = "speech"


def decode(data: bytes, name: str = "") -> Audio:
    """The sound in a file's bytes. UserError, beginning with `name` where one is given, also where it holds none."""
    audio = decode_audio(data, name)
    if audio.samples.numel() == 0:
        raise UserError(f"{name}: holds no sound" if name else "holds no sound")
    return audio


MODALITY = Modality(
    name="speech",
    segment=Speech,
    tokenizers={"speech": (SpeechTokenizerConfig, SpeechTokenizer)},
    suffixes=(".wav", ".flac", ".ogg", ".mp3"),
    written=(".wav", ".flac", ".ogg"),
    load=load_audio,
    save=save_audio,
    decode=decode,
    is_medium=lambda medium: isinstance(medium, Audio),
    describe=lambda audio: f"{audio.seconds:.2f} s",
    show=lambda audio: audio,
    digest=lambda audio: np.int64(audio.sample_rate).tobytes() + audio.samples.numpy().tobytes(),
    length=lambda audio: audio.seconds,
    ends_itself=True,
    second="semantic",
)
