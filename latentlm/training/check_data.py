"""`latentlm data validate --recipe`: finds what training would refuse in the data of a recipe, without training.

Place in the flow: 5, beside `latentlm.py`, whose first steps these are.
"""

from __future__ import annotations

from ..config import LatentLMRecipe
from ..data.cache import LatentCache, ResolvedDocuments
from ..data.packing import DocumentEncoder
from .distributed import World
from .feed import fit_rows
from .latentlm import open_parts, without_text


def check_data(recipe: LatentLMRecipe) -> list[ResolvedDocuments]:
    """The documents that training on `recipe` would learn from, by source; each is read, encoded and measured.

    Raises UserError naming the first document that cannot be read, has no tokenizer, or does not fit a row.
    """
    world = World()
    parts = open_parts(recipe, world.device)
    backbone = parts.backbone.transformer if parts.backbone else None
    config = parts.start.model.config if parts.start else recipe.model.resolved(backbone)
    cache = LatentCache(without_text(parts.tokenizers))
    resolved = [
        ResolvedDocuments(source, cache, each.noise)
        for each, source in zip(recipe.data.sources, parts.sources, strict=True)
    ]
    encoder = DocumentEncoder(parts.tokenizers["text"], config.lowercase)
    return fit_rows(recipe.data, resolved, encoder, config.transformer.context_length, world)
