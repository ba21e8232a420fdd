"""Sources ──▶ shards of latents, once: `latentlm encode`, and every path that a recipe trains on.

plan (which documents make which part) ──▶ workers (processes here, or Ray) ──▶ parts (encode one, write its file)
"""
