"""The continuous modalities, one file each: its segment, its files, its tokenizers, how it is shown.

A file that is added here is a modality: it defines `MODALITY`, a `types.Modality`. `config/modalities.py` finds it.
`vectors.py` is the one to copy: segment, files and tokenizer in one place.
"""
