"""The report of a check of data: counts, and silent sounds, which training would accept.

Place in the flow: 2, above sources on disk; `manifest.validate` counts manifests with the same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config.modalities import modality_names
from ..errors import notice
from ..media.sound import Audio, is_silent
from ..types import Document, Latents, Text
from .placed import place_of
from .progress import Progress

NUM_NAMED = 5
"""Most silent sounds that a notice lists."""


@dataclass
class DataReport:
    """Counts of a source: documents, segments by modality, different files by modality, seconds of sound.

    silent: places of the silent sounds.
    """

    num_documents: int = 0
    num_segments: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("text", *modality_names()), 0))
    num_files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(modality_names(), 0))
    num_characters: int = 0
    seconds: float = 0.0
    silent: list[str] = field(default_factory=list)

    def add_medium(self, medium: Any, place: str) -> None:
        """Count the seconds of a sound, and note it where it is silent."""
        if isinstance(medium, Audio):
            self.seconds += medium.seconds
            if is_silent(medium):
                self.silent.append(place)

    def notice(self) -> None:
        """Give a notice on silent sounds, if there are any."""
        if self.silent:
            more = f" and {len(self.silent) - NUM_NAMED:,} more" if len(self.silent) > NUM_NAMED else ""
            clips = "clip is" if len(self.silent) == 1 else "clips are"
            notice(f"{len(self.silent):,} {clips} silent: {', '.join(self.silent[:NUM_NAMED])}{more}")


def validate_documents(documents: Sequence[Document], label: str, *, quiet: bool = True) -> DataReport:
    """Read every document of a source and count. Raises UserError for the first that is wrong."""
    report = DataReport(num_documents=len(documents))
    with Progress("reading", "documents", len(documents), quiet=quiet) as progress:
        for index in range(len(documents)):
            for segment in documents[index].segments:
                report.num_segments[segment.modality] += 1
                if isinstance(segment, Text):
                    report.num_characters += len(segment.text)
                elif not isinstance(segment.content, Latents):
                    report.add_medium(segment.content, place_of(documents, index, label))
            progress.add(1)
    return report
