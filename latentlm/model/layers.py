"""The layers of backbone and diffusion head: RMSNorm, SwiGLU, RoPE, causal attention, connectors (PAPER §1.1, §6).

Place in the flow: 3, inside `transformer.py`, `heads/` and `latentlm.py`.
Legend: `B` rows, `T` positions, `S` cached positions, `D` width, `H` heads, `K` key-value heads, `E` head dim.
Departures from the paper: none; options (qkv bias, qk norm, grouped queries, slowed RoPE) are those of Llama 3, Qwen2
and Qwen3.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import RopeScalingConfig, TransformerConfig
from .cache import LayerCache

CONNECTOR_EPS = 1e-6
TILE = 32
"""`pad_rows` rounds the number of rows of a matrix product up to a multiple of this."""


# Said once per process by torch's norm of bf16 values with fp32 weights on a CPU, which is what is meant here.
warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, times a learned weight unless `weight` is False (the authors' code has none, PAPER §1.3)."""

    def __init__(self, width: int, eps: float, weight: bool = True):
        super().__init__()
        self.shape = (width,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        if not (x.is_cpu and x.dtype is torch.float32):
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        y = UnitRMS.apply(x, self.eps) if x.requires_grad else x / rms(x, self.eps)
        return y if self.weight is None else y * self.weight


class UnitRMS(torch.autograd.Function):
    """x / √(mean x² + eps) over the last dimension, for fp32 on a CPU.

    torch's own is one kernel on a GPU, but on a CPU it passes over x six times, and more often in the backward pass:
    that was a twentieth of a small model's training step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        scale = rms(x, eps)
        y = x / scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to x: (g − y·mean(g·y)) / rms."""
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(dim=-1, keepdim=True)
        return torch.addcmul(gradient, y, along, value=-1).div_(scale), None


def rms(x: Tensor, eps: float) -> Tensor:
    """√(mean x² + eps) over the last dimension: (..., W) -> (..., 1)."""
    W = x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.hypot(norm, norm.new_full((), (W * eps) ** 0.5)).mul_(W**-0.5)


class SwiGLU(nn.Module):
    """W2(silu(W1 x) ⊙ Wg x), no biases; W1 and Wg are one matrix product."""

    def __init__(self, width: int, ffn_width: int):
        super().__init__()
        self.up = nn.Linear(width, 2 * ffn_width, bias=False)
        self.down = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Connector(nn.Module):
    """Linear, RMSNorm, Linear, with biases: an option for the map of latents and features to the width (PAPER §6)."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.up = nn.Linear(features, width)
        self.norm = RMSNorm(width, CONNECTOR_EPS)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., D)."""
        return self.out(self.norm(self.up(x)))


def pad_rows(x: Tensor) -> Tensor:
    """Pad x (N, ...) with rows of zeros up to a multiple of TILE.

    oneDNN compiles and keeps a kernel for each shape, and the number of latents and targets differs between batches:
    without padding, new kernels took a tenth of the training time and a gigabyte of memory.
    """
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % TILE))


def draw_linear(module: nn.Module) -> None:
    """Initialise the linear layers in `module`, in order: weights with std 1/√fan_in, biases zero.

    A fixed std of 0.02 suits widths of thousands. At a width of 192 attention and conditioning would begin near zero,
    and a model takes several times as long to follow its prompt (docs/log.md).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def ffn_width(width: int) -> int:
    """The default width of a SwiGLU FFN: 8/3 of `width`, rounded up to a multiple of 64.

    It has as many parameters as a two-matrix FFN of 4 × the width.
    """
    return -(-width * 8 // 3 // 64) * 64


def rotary(positions: Tensor, head_dim: int, config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """cos and signed sin of the RoPE angles for `rotate`, fp32: positions (B, T) -> two tensors (B, 1, T, E).

    The exponents are 0, 2/E, 4/E … or, with `rope_closed`, E/2 numbers evenly spaced from 0 to 1, both included.
    """
    last = head_dim - 2 if config.rope_closed else head_dim
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / last
    frequencies = config.rope_base**-exponent  # (E/2,)
    if config.rope_scaling is not None:
        frequencies = frequencies * slowed(frequencies, config.rope_scaling)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, E/2)
    cos, sin = angles.cos(), angles.sin()
    if config.rope_interleaved:
        return cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def slowed(frequencies: Tensor, scaling: RopeScalingConfig) -> Tensor:
    """Factors for the RoPE frequencies (E/2,): 1 for fast ones, 1/factor for slow ones, interpolated in between."""
    turns = scaling.context_length * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)).clamp(0, 1)
    return kept + (1 - kept) / scaling.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the pairs of x (B, H, T, E): elements (0, E/2), (1, E/2+1) … or, if `interleaved`, (0, 1), (2, 3) …

    A pair (a, b) becomes (a·cos − b·sin, b·cos + a·sin), computed as x·cos + partner·sin; `sin` carries the sign.
    """
    half = x.shape[-1] // 2
    partner = x.unflatten(-1, (half, 2)).flip(-1).flatten(-2) if interleaved else x.roll(half, dims=-1)
    return torch.addcmul(x * cos.to(x.dtype), partner, sin.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention through SDPA, with an optional key-value cache."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.effective_num_kv_heads
        self.head_dim = config.effective_head_dim
        self.interleaved = config.rope_interleaved
        self.dropout = config.dropout
        heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv = nn.Linear(config.width, heads * self.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(self.num_heads * self.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        """x (B, T, D) -> (B, T, D). mask: None is plain causal attention. With a cache, past keys are attended too."""
        B, T, _ = x.shape
        H, K, E = self.num_heads, self.num_kv_heads, self.head_dim
        qk, v = self.qkv(x).view(B, T, H + 2 * K, E).transpose(1, 2).split((H + K, K), dim=1)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :H]), self.k_norm(qk[:, H:])), dim=1)
        q, k = rotate(qk, *rope, self.interleaved).split((H, K), dim=1)  # (B, H or K, T, E)
        if cache is not None:
            (k, v), q = cache.update(k, v), cache.spread(q)  # (P, K, S, E) and (P, H, T, E)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and T > 1,
            enable_gqa=H != K,
        )
        if cache is not None:
            y = cache.collect(y)  # (B, H, T, E)
        return self.out(y.transpose(1, 2).reshape(B, T, H * E))
