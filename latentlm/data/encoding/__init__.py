"""Sources ──▶ shards of latents: `latentlm encode`, and the paths in a recipe, which training encodes first.

plan (which documents make which part) ──▶ workers (processes here, or Ray) ──▶ parts (encode one, write its file)
"""
