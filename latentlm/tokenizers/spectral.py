"""The spectral front of the speech tokenizer: a causal STFT before the encoder, an inverse STFT behind the decoder.

Place in the flow: inside `speech.py` where `front` is "spectral". Not in the paper, whose encoder reads samples: on a
small budget the spectra are learned several times faster.

Framing. Frame i is the W samples that *end* with sample (i + 1)·h - 1, so the analysis looks at the past only. A
sample is covered by W / h frames, the last of which comes W - h samples later: the synthesis therefore runs `delay` =
W - h samples behind. Whole clips hide this (`speech.py` drops the first `delay` samples and lets the decoder run past
the end by as much); a stream gets its samples that much later.
Legend: `B` clips, `S` samples, `T` frames, `W` window, `h` frame hop, `F` = W/2 + 1 bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .causal import NORM_EPS, Stream, with_past

MAGNITUDE_FLOOR = 1e-4
"""Added to magnitudes before the logarithm: below the quantisation noise of 16-bit sound."""

QUIET = -3.0
"""Where the log-magnitude head starts: near silence rather than at full-scale noise."""


class SpectralFeatures(nn.Module):
    """Samples (B, S) -> log-magnitudes (B, S / h, F), shifted and scaled to about [-1, 2]."""

    def __init__(self, window: int, hop: int):
        super().__init__()
        self.window, self.hop = window, hop
        self.num_features = window // 2 + 1
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, samples: Tensor, stream: Stream | None = None) -> Tensor:
        samples = with_past(self, samples.float(), self.window - self.hop, stream)
        frames = samples.unfold(1, self.window, self.hop) * self.taper  # (B, T, W)
        magnitude = torch.fft.rfft(frames).abs()
        return ((magnitude + MAGNITUDE_FLOOR).log() + 4.0) / 4.0


class InverseSTFT(nn.Module):
    """Features (B, T, D) -> samples (B, T·h), W - h samples late.

    One linear layer predicts log-magnitude and phase of every bin, the phase as an angle without bounds (its sine and
    cosine are what counts, so nothing has to be unwrapped).
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
        )  # (h,) what overlapping squared windows add to
        self.register_buffer("taper", (taper.unflatten(0, (self.overlap, hop)) / envelope).flatten(), persistent=False)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        log_magnitude, phase = self.proj(self.norm(x)).float().chunk(2, dim=-1)  # (B, T, F) each
        magnitude = log_magnitude.clamp(max=self.max_log_magnitude).exp()
        frames = torch.fft.irfft(torch.polar(magnitude, phase), n=self.window) * self.taper  # (B, T, W)
        parts = frames.unflatten(2, (self.overlap, self.hop))  # (B, T, m, h)
        parts = with_past(self, parts, self.overlap - 1, stream)  # (B, T + m - 1, m, h)
        # Part j of frame i lies m - 1 - j blocks before the newest block of that frame, hence block t gathers part j of
        # frame t - j (counted with the past): the oldest frame's last part, ..., the newest frame's first part.
        length = x.shape[1]
        blocks = sum(parts[:, self.overlap - 1 - j :][:, :length, j] for j in range(self.overlap))  # (B, T, h)
        return blocks.flatten(1)
