"""The arithmetic floor of generation: FLOPs of the matrix products per latent, divided by the measured matrix rate.

Counted are (2 FLOPs per multiply-add; without norms, activations, softmax, the solver and prefill):
    R = cache rows of a step: B requests, twice with guidance;  S = positions in the cache;  n = head evaluations
    backbone    2·R·L·(D·(H+2K)·E + H·E·D + 3·D·F)         qkv, attention output, SwiGLU of every layer
    attention   4·R·L·H·E·S                                 q·kᵀ and softmax·v over the cached positions
    embed       2·B·C·D                                     the previous latent
    condition   2·R·D·W                                     once per latent
    modulation  2·R·n·W·(3·W·k + 2·W)                       AdaLN of k blocks and the final layer
    ffn         2·R·n·3·W·G·k                               SwiGLU of the k blocks
    in, out     2·B·n·C·W + 2·R·n·W·C                       the noisy latent is the same for both branches
Legend: `L` layers, `D` width, `H` heads, `K` key-value heads, `E` head dim, `F` FFN width; head: `W` width, `G` FFN
width, `k` blocks; `C` latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import torch
import torch.nn.functional as F
from figures import seconds_of

from latentlm.config import ModelConfig
from latentlm.model.layers import ffn_width


def step_flops(
    config: ModelConfig, latent_dim: int, *, requests: int, guided: bool, context: int, evaluations: int
) -> dict[str, int]:
    """FLOPs that one latent of each of `requests` needs, at `context` cached positions (the new one included)."""
    t, h = config.transformer, config.head
    B, R, n = requests, requests * (2 if guided else 1), evaluations
    L, D, H, C = t.num_layers, t.width, t.num_heads, latent_dim
    K, E = t.num_kv_heads or H, t.head_dim or D // H
    G_backbone = t.ffn_width or ffn_width(D)
    W, k = h.width or D, h.num_layers
    G = h.ffn_width or ffn_width(W)
    return {
        "backbone": 2 * R * L * (D * (H + 2 * K) * E + H * E * D + 3 * D * G_backbone),
        "attention": 4 * R * L * H * E * context,
        "embed": 2 * B * C * D,
        "condition": 2 * R * D * W,
        "modulation": 2 * R * n * W * (3 * W * k + 2 * W),
        "ffn": 2 * R * n * 3 * W * G * k,
        "in_out": 2 * B * n * C * W + 2 * R * n * W * C,
    }


def occurring_shapes(config: ModelConfig, rows: int, evaluations: int) -> list[tuple[int, int, int]]:
    """Shapes (M, K, N) of the matrix products with most of the work: (M, K) times (K, N)."""
    t, h = config.transformer, config.head
    W = h.width or t.width
    G, G_backbone = h.ffn_width or ffn_width(W), t.ffn_width or ffn_width(t.width)
    return [
        (rows, W, 2 * G),
        (rows, G, W),
        (rows, W, 3 * W),
        (rows * evaluations, W, 3 * W),
        (rows, t.width, 2 * G_backbone),
        (rows, G_backbone, t.width),
    ]


class MatrixRate:
    """FLOP/s of torch's linear on this machine in one dtype: the higher rate of two products, that of the fastest shape
    that occurs and a large square one. Both are measured again at every `probe`."""

    def __init__(self, shapes: Iterable[tuple[int, int, int]], dtype: torch.dtype, square: int, repeats: int = 5):
        self.dtype = dtype
        self.repeats = repeats
        survey = {shape: flops_per_second(shape, dtype, repeats) for shape in sorted(set(shapes))}
        self.survey = {"x".join(map(str, shape)): rate for shape, rate in survey.items()}
        self.best_shape = max(survey, key=survey.__getitem__)
        self.square = (square, square, square)
        self.occurring: list[float] = []
        self.squares: list[float] = []

    def probe(self) -> float:
        """Measure the current rate, in FLOP/s."""
        self.occurring.append(flops_per_second(self.best_shape, self.dtype, self.repeats))
        self.squares.append(flops_per_second(self.square, self.dtype, self.repeats))
        return max(self.occurring[-1], self.squares[-1])

    def detail(self) -> dict:
        return {
            "best_shape": "x".join(map(str, self.best_shape)),
            "best_shape_gflops": median(self.occurring) / 1e9,
            "square": self.square[0],
            "square_gflops": median(self.squares) / 1e9,
            "survey_gflops": {name: rate / 1e9 for name, rate in self.survey.items()},
        }


@torch.inference_mode()
def flops_per_second(shape: tuple[int, int, int], dtype: torch.dtype, repeats: int) -> float:
    """Median rate over `repeats` timings, each of about 50 MFLOP or of one product."""
    M, K, N = shape
    flops = 2 * M * K * N
    x, weight = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
    number = max(1, 50_000_000 // flops)

    def products() -> None:
        for _ in range(number):
            F.linear(x, weight)

    products()
    return number * flops / median(seconds_of(products) for _ in range(repeats))
