"""What the engine's events add up to: runs of tokens and latents, and the one medium that was asked for.

Place in the flow: 4, events ──▶ parts ──`generate.py`──▶ media.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..modalities.speech import Speech
from ..types import Audio, GenerationOutput, Text
from .task import Event


@dataclass
class Part:
    """One run of an answer: tokens or latents, and the sound of latents that the engine decoded itself."""

    modality: str
    values: list = field(default_factory=list)
    sounds: list[torch.Tensor] = field(default_factory=list)


def collect(parts: list[Part], event: Event) -> None:
    """Add an event to the parts of its request."""
    if event.kind == "open":
        parts.append(Part(event.value))
    elif event.kind == "latent":
        parts[-1].values.append(event.value)
    elif event.kind == "sound":
        parts[-1].sounds.append(event.value.cpu())
    elif event.kind == "token":
        if not parts or parts[-1].modality != "text":
            parts.append(Part("text"))
        parts[-1].values.append(event.value)


def answer(output: GenerationOutput):
    """The one medium that was asked for; speech in several spans is one clip."""
    first = output.segments[0]
    if isinstance(first, Speech) and len(output.segments) > 1:
        clips = [segment.content for segment in output.segments]
        return Audio(torch.cat([clip.samples for clip in clips]), clips[0].sample_rate)
    return first.text if isinstance(first, Text) else first.content
