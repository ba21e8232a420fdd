"""Causal 1-D layers that run whole or in pieces: convolution, down- and upsampling, ConvNeXt block (PAPER §4.1, §6).

Place in the flow: inside `speech.py` and `spectral.py`. Tensors are (B, T, D), time before channels, so that depthwise
convolutions and feed-forward need no transposition. A layer sees a fixed number of past steps of its input: zeros at
the start of a clip, or, with a `CausalState`, the end of the previous piece. Weights have the layouts of torch's
convolutions.
Blocks are those of the authors' later speech tokenizer (PAPER §6): depthwise kernel 7, RMSNorm, 4× GELU, layer scale,
no final norm. Departure: layer scale starts at 1 / (number of blocks) instead of 1e-6, which learns faster.
Legend: `B` clips, `T` steps, `D` channels in, `E` channels out, `k` kernel, `s` stride.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


class CausalState:
    """The last input steps of every causal layer, kept between two pieces of the same sound."""

    def __init__(self) -> None:
        self._past: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Tensor, size: int) -> Tensor:
        """x (B, T, ...) behind the last `size` steps that `layer` has seen -> (B, size + T, ...)."""
        past = self._past.get(layer)
        extended = torch.cat((_silence(x, size) if past is None else past, x), 1)
        self._past[layer] = extended[:, extended.shape[1] - size :]
        return extended


def with_past(layer: nn.Module, x: Tensor, size: int, state: CausalState | None) -> Tensor:
    """x (B, T, ...) behind `size` past steps of `layer`'s input, or zeros without a state -> (B, size + T, ...)."""
    if state is None:
        return torch.cat((_silence(x, size), x), 1)
    return state.extend(layer, x, size)


def _silence(x: Tensor, size: int) -> Tensor:
    return x.new_zeros(x.shape[0], size, *x.shape[2:])


class CausalConv(nn.Module):
    """Convolution of stride 1 whose output at t sees inputs up to t: (B, T, D) -> (B, T, E)."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, groups: int = 1):
        super().__init__()
        self.past = kernel_size - 1
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in // groups, kernel_size))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        nn.init.trunc_normal_(self.weight, std=(kernel_size * channels_in / groups) ** -0.5)

    def forward(self, x: Tensor, state: CausalState | None = None) -> Tensor:
        x = with_past(self, x, self.past, state).transpose(1, 2)
        # conv2d with height 1 uses torch's channels-last depthwise kernel, which is three times faster.
        y = F.conv2d(x.unsqueeze(2), self.weight.unsqueeze(2), self.bias, groups=self.groups)
        return y.squeeze(2).transpose(1, 2)


class DownConv(nn.Module):
    """Convolution of stride s and kernel 2s: (B, T·s, D) -> (B, T, E). Output t sees inputs up to (t + 1)·s - 1."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, 2 * stride))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        nn.init.trunc_normal_(self.weight, std=(2 * stride * channels_in) ** -0.5)

    def forward(self, x: Tensor, state: CausalState | None = None) -> Tensor:
        groups = x.unflatten(1, (-1, self.stride)).flatten(2)  # (B, T, s·D)
        groups = with_past(self, groups, 1, state)
        pairs = torch.cat((groups[:, :-1], groups[:, 1:]), -1)  # (B, T, 2s·D): the previous stride and this one
        return F.linear(pairs, self.weight.transpose(1, 2).flatten(1), self.bias)


class UpConv(nn.Module):
    """Transposed convolution of stride s and kernel 2s without its last s outputs: (B, T, D) -> (B, T·s, E).

    Output t sees inputs up to t // s.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels_in, channels_out, 2 * stride))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        nn.init.trunc_normal_(self.weight, std=(2 * channels_in) ** -0.5)

    def forward(self, x: Tensor, state: CausalState | None = None) -> Tensor:
        x = with_past(self, x, 1, state)
        pairs = torch.cat((x[:, 1:], x[:, :-1]), -1)  # (B, T, 2D): this step and the previous one
        now, before = self.weight.chunk(2, dim=-1)  # (D, E, s) each: the kernel's first half acts on the step itself
        kernel = torch.cat((now, before), 0).permute(2, 1, 0).flatten(0, 1)  # (s·E, 2D)
        y = F.linear(pairs, kernel).unflatten(-1, (self.stride, -1)) + self.bias  # (B, T, s, E)
        return y.flatten(1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise causal convolution, then a 4× GELU feed-forward, each pre-normed and scaled: (B, T, D) -> (B, T, D)."""

    def __init__(self, channels: int, kernel_size: int, layer_scale: float):
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)
        self.mixer = CausalConv(channels, channels, kernel_size, groups=channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))
        self.ffn_norm = nn.RMSNorm(channels, eps=NORM_EPS)
        self.ffn = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.ffn_gamma = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor, state: CausalState | None = None) -> Tensor:
        x = x + self.gamma * self.mixer(self.norm(x), state)
        return x + self.ffn_gamma * self.ffn(self.ffn_norm(x))
