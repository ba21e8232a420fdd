"""Evaluation of models and tokenizers: figures with their protocol and a reference, and pages that show them."""
