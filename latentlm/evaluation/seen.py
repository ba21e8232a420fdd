"""What a model was trained on, as far as its recipe tells: so that nothing is asked of it that it never saw.

Place in the flow: recipe ──▶ `Seen` ──▶ `evaluate`, which leaves out the rest and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import LatentLMRecipe, SourceConfig
from ..data.embedded import emoji

SOURCES = {
    "digits": ("digits",),
    "emoji": ("emoji",),
    "shapes": ("shapes",),
    "speech": ("speech", "spoken_digits", "spoken_phrases"),
    "text": ("prose", "shapes"),
}
"""The embedded sources whose held-out part a task is about."""


@dataclass(frozen=True)
class Seen:
    """By default, as of a model without a recipe: everything there is.

    sources: the embedded ones by name, None for any. emoji_names: those trained on, None for all. phrases: whether any
    were spoken. held_out: paths of the manifests of the recipe that were kept for this; streamed: its paths and shards
    that keep documents for it.
    """

    sources: frozenset[str] | None = None
    emoji_names: Sequence[str] | None = None
    phrases: bool = True
    held_out: tuple[str, ...] = ()
    streamed: tuple[SourceConfig, ...] = ()

    @classmethod
    def of(cls, recipe: LatentLMRecipe) -> Seen:
        """What `recipe` trains on; what its `model.start` has seen before is not known."""
        sources = recipe.data.sources
        kept = [source for source in sources if source.held_out is not None]
        held_out = tuple(dict.fromkeys(source.held_out for source in kept if source.manifest is not None))
        streamed = tuple(source for source in kept if source.is_on_disk)
        if recipe.model.start is not None:
            return cls(held_out=held_out, streamed=streamed)
        limits = [source.limit for source in sources if source.name == "emoji"]
        most = min(max((limit for limit in limits if limit is not None), default=0), len(emoji.load()))
        names = None if None in limits else [item.name for item in emoji.subset(most)] if most else []
        known = frozenset(source.name for source in sources if source.name)
        return cls(known, names, bool(known & {"spoken_phrases", "speech"}), held_out, streamed)

    def task(self, name: str) -> bool:
        """Whether evaluation `name` is about something that was trained on."""
        return self.sources is None or name not in SOURCES or not self.sources.isdisjoint(SOURCES[name])
