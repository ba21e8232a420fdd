"""The continuous modalities, one file each: segment, files, tokenizers, and how a medium is shown.

Every file here defines a modality: `MODALITY`, a `types.Modality`. `config/modalities.py` finds it by its name. To add
one, copy `vectors.py`, which has segment, files and tokenizer in one place.
"""
