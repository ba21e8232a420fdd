"""`latentlm data validate --recipe`: what training would refuse in the data of a recipe, found without training.

Place in the flow: 5, beside `latentlm.py`, whose first steps these are.
"""

from __future__ import annotations

from ..config import LatentLMRecipe
from ..data.cache import LatentCache, ResolvedDocuments
from ..data.packing import DocumentEncoder
from ..generation.pipeline import load
from ..interop.hf_llm import Backbone
from .distributed import World
from .feed import fit_rows
from .latentlm import build_tokenizers, recipe_documents


def check_data(recipe: LatentLMRecipe) -> list[ResolvedDocuments]:
    """The documents that training on `recipe` would learn from, by source; each is read, encoded and measured.

    Raises UserError naming the first document that cannot be read, has no tokenizer, or does not fit a row.
    """
    world = World()
    start = load(recipe.model.start, device=world.device) if recipe.model.start else None
    backbone = Backbone.open(recipe.model.backbone) if recipe.model.backbone else None
    config = start.model.config if start else recipe.model.resolved(backbone.transformer if backbone else None)
    sources = recipe_documents(recipe, config.prompt)
    tokenizers = start.tokenizers if start else build_tokenizers(recipe, sources, world.device, backbone)
    cache = LatentCache({name: tokenizer for name, tokenizer in tokenizers.items() if name != "text"})
    resolved = [
        ResolvedDocuments(source, cache, each.noise) for each, source in zip(recipe.data.sources, sources, strict=True)
    ]
    encoder = DocumentEncoder(tokenizers["text"])
    return fit_rows(recipe.data, resolved, encoder, config.transformer.context_length, world)
