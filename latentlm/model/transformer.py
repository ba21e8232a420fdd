"""The causal backbone: L pre-RMSNorm layers of attention and SwiGLU, then a final RMSNorm (PAPER §1.1).

Place in the flow: 3, embeddings ──▶ hidden states, for training (packed rows), prefill and decoding (cache).
Legend: `B` rows, `T` positions, `D` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import TransformerConfig
from .cache import CachePass, KVCache
from .layers import Attention, RMSNorm, SwiGLU, ffn_width, rotary


class Block(nn.Module):
    """Transformer block: x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x))."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps, config.norm_weight)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps, config.norm_weight)
        self.ffn = SwiGLU(config.width, config.ffn_width or ffn_width(config.width))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache=None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps, config.norm_weight)

    @property
    def head_dim(self) -> int:
        return self.blocks[0].attention.head_dim

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        documents: Tensor,
        spans: Tensor | None = None,
        free_spans: bool = False,
    ) -> Tensor:
        """Hidden states (B, T, D) of packed rows: x (B, T, D); positions, documents and spans (B, T).

        free_spans: positions of the same span attend to each other in both directions.
        """
        return self._layers(x, positions, attention_mask(documents, spans, free_spans))

    def extend(self, x: Tensor, view: CachePass) -> Tensor:
        """Hidden states (B, T, D) of x (B, T, D), appended to the cache rows of `view`: prefill and decoding."""
        return self._layers(x, view.positions, view.mask, view)

    def new_cache(self, num_rows: int, capacity: int) -> KVCache:
        attention, weight = self.blocks[0].attention, self.blocks[0].attention.qkv.weight
        return KVCache(
            len(self.blocks),
            num_rows,
            attention.num_kv_heads,
            capacity,
            attention.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    def _layers(self, x: Tensor, positions: Tensor, mask: Tensor | None, view: CachePass | None = None) -> Tensor:
        rope = rotary(positions, self.head_dim, self.config)
        mask = None if mask is None else additive(mask, x)
        for index, block in enumerate(self.blocks):
            x = block(x, rope, mask, view.layer(index) if view else None)
        return self.norm(x)


def attention_mask(documents: Tensor, spans: Tensor | None, free_spans: bool) -> Tensor:
    """The attention mask (B, 1, T, T), bool: [b, 0, i, j] says whether position i of row b attends to position j.

    Attention is causal and stays inside a document. With `free_spans` a position also attends to the whole span that it
    lies in, as in Transfusion (arXiv 2408.11039). documents, spans (B, T): ids; a span id of -1 means outside any span.
    `spans` may be None without `free_spans`.
    """
    T = documents.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=documents.device).tril()
    mask = (documents[:, None, :, None] == documents[:, None, None, :]) & causal
    if free_spans:
        same = spans[:, None, :, None] == spans[:, None, None, :]
        mask = mask | (same & (spans >= 0)[:, None, :, None])
    return mask


def additive(mask: Tensor, x: Tensor) -> Tensor:
    """The bool `mask` as 0 and -inf, which attention adds to its logits, in the dtype of the computation with x.

    Done once here: otherwise attention converts it in every layer, forward and backward, and keeps a copy per layer.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
