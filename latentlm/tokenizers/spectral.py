"""The spectral front of the speech tokenizer: a causal STFT before the encoder, an inverse STFT behind the decoder.

Place in the flow: inside `speech.py` where `front` is "spectral". Not in the paper, whose encoder reads samples; with
little compute, spectra are learned several times faster.

Frames. Frame i is the W samples that *end* with sample (i + 1)·h - 1, so it depends on the past only. A sample lies in
W / h frames, the last of which ends W - h samples later, so the decoder's output is `delay` = W - h samples late. For
whole clips `speech.py` drops the first `delay` samples and runs the decoder past the end by as many; in a stream the
samples come that much later.
Legend: `B` clips, `S` samples, `T` frames, `W` window, `h` frame hop, `F` = W/2 + 1 bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .causal import NORM_EPS, CausalState, with_past

MAGNITUDE_FLOOR = 1e-4
"""Added to magnitudes before the logarithm; below the quantisation noise of 16-bit sound."""

QUIET = -3.0
"""Initial bias of the log-magnitudes: near silence, not full-scale noise."""


class SpectralFeatures(nn.Module):
    """Samples (B, S) -> log-magnitudes (B, S / h, F), shifted and scaled to about [-1, 2]."""

    def __init__(self, window: int, hop: int):
        super().__init__()
        self.window, self.hop = window, hop
        self.num_features = window // 2 + 1
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, samples: Tensor, state: CausalState | None = None) -> Tensor:
        samples = with_past(self, samples.float(), self.window - self.hop, state)
        frames = samples.unfold(1, self.window, self.hop) * self.taper  # (B, T, W)
        magnitude = torch.fft.rfft(frames).abs()
        return ((magnitude + MAGNITUDE_FLOOR).log() + 4.0) / 4.0


class InverseSTFT(nn.Module):
    """Features (B, T, D) -> samples (B, T·h), W - h samples late.

    One linear layer predicts log-magnitude and phase of every bin. The phase is an unbounded angle, of which only sine
    and cosine are used.
    """

    def __init__(self, channels: int, window: int, hop: int):
        super().__init__()
        self.window, self.hop = window, hop
        self.overlap = window // hop
        self.max_log_magnitude = math.log(window / 2)  # twice a full-scale sine under a Hann window; keeps exp finite
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)
        self.proj = nn.Linear(channels, 2 * (window // 2 + 1))
        with torch.no_grad():
            self.proj.bias[: window // 2 + 1].fill_(QUIET)
        taper = torch.hann_window(window)
        envelope = (
            taper.square().unflatten(0, (self.overlap, hop)).sum(0)
        )  # (h,) the sum of the overlapping squared windows
        self.register_buffer("taper", (taper.unflatten(0, (self.overlap, hop)) / envelope).flatten(), persistent=False)

    def forward(self, x: Tensor, state: CausalState | None = None) -> Tensor:
        log_magnitude, phase = self.proj(self.norm(x)).float().chunk(2, dim=-1)  # (B, T, F) each
        magnitude = log_magnitude.clamp(max=self.max_log_magnitude).exp()
        frames = torch.fft.irfft(torch.polar(magnitude, phase), n=self.window) * self.taper  # (B, T, W)
        parts = frames.unflatten(2, (self.overlap, self.hop))  # (B, T, m, h)
        parts = with_past(self, parts, self.overlap - 1, state)  # (B, T + m - 1, m, h)
        # A frame has m parts of h samples. Part j of frame i belongs to block i + j of the output, which is m - 1
        # blocks late. Block t is the sum of part j of frame t - j over all j.
        length = x.shape[1]
        blocks = sum(parts[:, self.overlap - 1 - j :][:, :length, j] for j in range(self.overlap))  # (B, T, h)
        return blocks.flatten(1)
