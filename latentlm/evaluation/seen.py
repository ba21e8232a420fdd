"""The sources that a model was trained on, as its recipe names them: an evaluation measures these and no others.

Place in the flow: recipe ──▶ `Seen` ──▶ `evaluate`.
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
"""The embedded sources that each part of an evaluation is about."""


@dataclass(frozen=True)
class Seen:
    """The sources of a recipe. The default is every embedded source.

    sources: names of the embedded ones, None for all. emoji_names: those trained on, None for all. phrases: whether any
    spoken phrases were trained on. own: sources of the user's own data, to train on. held_out: paths of the manifests
    that the recipe holds out; streamed: its paths and shards that hold documents out.
    """

    sources: frozenset[str] | None = None
    emoji_names: Sequence[str] | None = None
    phrases: bool = True
    own: tuple[SourceConfig, ...] = ()
    held_out: tuple[str, ...] = ()
    streamed: tuple[SourceConfig, ...] = ()

    @classmethod
    def of(cls, recipe: LatentLMRecipe) -> Seen:
        """The sources of `recipe`, without those of the model that it starts from."""
        sources = recipe.data.sources
        kept = [source for source in sources if source.held_out is not None]
        limits = [source.limit for source in sources if source.name == "emoji"]
        most = min(max((limit for limit in limits if limit is not None), default=0), len(emoji.load()))
        names = None if None in limits else [item.name for item in emoji.subset(most)] if most else []
        known = frozenset(source.name for source in sources if source.name)
        return cls(
            sources=known,
            emoji_names=names,
            phrases=bool(known & {"spoken_phrases", "speech"}),
            own=tuple(source for source in sources if source.name is None),
            held_out=tuple(dict.fromkeys(source.held_out for source in kept if source.manifest is not None)),
            streamed=tuple(source for source in kept if source.is_on_disk),
        )

    @classmethod
    def nothing(cls) -> Seen:
        """The record of a model whose training data are unknown: no sources."""
        return cls(sources=frozenset(), emoji_names=[], phrases=False)

    def part(self, name: str) -> bool:
        """Whether the part `name` of an evaluation is about a source that was trained on."""
        return self.sources is None or name not in SOURCES or not self.sources.isdisjoint(SOURCES[name])
