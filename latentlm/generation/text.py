"""Picking the next token from the text head's logits.

Place in the flow: 4, hidden state ──▶ token. Legend: `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ..tokenizers.text import SpecialTokens


def forbidden_tokens(special: SpecialTokens, opens: Collection[str] = ()) -> list[int]:
    """Tokens that free-running text may not produce: those that only the sequence layout writes.

    Spans of the modalities `opens` the model may open by <BOD> itself. <EOS> may always come, also where a backbone has
    one token for both ends of a document.
    """
    layout = [special.bos, special.eod, special.proceed, special.latent]
    layout += [bod for name, bod in special.bod.items() if name not in opens]
    return [token for token in layout if token not in (None, special.eos)]


def free_text_bias(special: SpecialTokens, vocabulary: int, opens: Collection[str] = ()) -> Tensor:
    """What is added to logits (V,): -inf for the forbidden tokens, 0 for all others."""
    bias = torch.zeros(vocabulary)
    bias[forbidden_tokens(special, opens)] = -torch.inf
    return bias


def pick_token(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One token of logits (V,): the most likely at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator))
