"""Reconstruction losses of the tokenizers, named and unweighted (PAPER §1.7, §4.1).

Place in the flow: the end of a tokenizer's `forward`. Each loss is (B,), the mean over its own example. The trainer
applies the weights, `loss_weights(recipe)`. A loss of weight zero is not computed.
Images: "mse" and "l1" of pixels in [-1, 1]. Speech, over valid samples only:
  "stft"      Σ over windows of spectral convergence ‖|S|-|Ŝ|‖ / ‖|S|‖ and mean |log|S| - log|Ŝ||
  "mel"       Σ over windows of mean |log10 mel - log10 mêl|, Slaney filters, as the mel distance of DAC
  "waveform"  mean |x - x̂|
Legend: `B` examples, `S` samples, `F` frequency bins, `M` mel bands, `T` frames.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import (
    ImageReconstructionConfig,
    ImageTokenizerRecipe,
    SpeechReconstructionConfig,
    SpeechTokenizerRecipe,
)

SPECTRAL_WINDOWS = ((256, 20), (1024, 80), (2048, 160))
"""(window in samples, mel bands) of both spectral losses; the hop is a quarter of the window."""

FLOOR = 1e-5
"""Lower bound of magnitudes before every logarithm, as in DAC."""


def loss_weights(recipe: ImageTokenizerRecipe | SpeechTokenizerRecipe) -> dict[str, float]:
    """The weight of each loss of the recipe's tokenizer: the reconstruction losses, and β for "prior".

    Each is multiplied by the recipe's `training.loss_weights`, where that names it.
    """
    weights = recipe.losses.model_dump() | {"prior": recipe.tokenizer.posterior.weight}
    extra = recipe.training.loss_weights
    return {name: weight * extra.get(name, 1.0) for name, weight in weights.items() if weight > 0}


def image_reconstruction(output: Tensor, target: Tensor, weights: ImageReconstructionConfig) -> dict[str, Tensor]:
    """ "mse" and "l1" (B,) between two batches of pixels (B, 3, H, W)."""
    difference = (output - target).flatten(1)
    losses: dict[str, Tensor] = {}
    if weights.mse > 0:
        losses["mse"] = difference.square().mean(1)
    if weights.l1 > 0:
        losses["l1"] = difference.abs().mean(1)
    return losses


def speech_reconstruction(
    output: Tensor, target: Tensor, lengths: Tensor, sample_rate: int, weights: SpeechReconstructionConfig
) -> dict[str, Tensor]:
    """ "stft", "mel" and "waveform" (B,) between two batches of waveforms (B, S) with `lengths` (B,) valid samples."""
    valid = torch.arange(target.shape[-1], device=target.device) < lengths[:, None]  # (B, S)
    output, target = output * valid, target * valid
    losses: dict[str, Tensor] = {}
    if weights.waveform > 0:
        losses["waveform"] = (output - target).abs().sum(1) / lengths.clamp(min=1)
    if weights.stft <= 0 and weights.mel <= 0:
        return losses
    for window, num_bands in SPECTRAL_WINDOWS:
        counted = _valid_frames(lengths, window, target.shape[-1])  # (B, T)
        fake, real = magnitudes(output, window), magnitudes(target, window)  # (B, T, F)
        if weights.stft > 0:
            losses["stft"] = losses.get("stft", 0) + _stft_distance(fake, real, counted)
        if weights.mel > 0:
            filters = mel_filterbank(sample_rate, window, num_bands).to(real.device)  # (M, F)
            difference = _log(fake @ filters.T) - _log(real @ filters.T)
            losses["mel"] = losses.get("mel", 0) + _frame_mean(difference.abs(), counted) / _LN10
    return losses


_LN10 = 2.302585092994046


def magnitudes(waveform: Tensor, window: int) -> Tensor:
    """(B, S) -> (B, T, F) STFT magnitudes, Hann window, hop window / 4, centred on multiples of the hop.

    Magnitudes are at least 1e-7, which keeps the gradient of the square root finite in silence.
    """
    hop = window // 4
    num_frames = waveform.shape[-1] // hop + 1
    padded = F.pad(waveform, (window // 2, window // 2 + hop))[:, : (num_frames + 3) * hop]
    quarters = padded.unflatten(1, (-1, hop))  # (B, T + 3, h); concatenation has a faster gradient than `unfold`
    frames = torch.cat([quarters[:, j : j + num_frames] for j in range(4)], -1)  # (B, T, W)
    spectrum = torch.fft.rfft(frames * torch.hann_window(window, device=waveform.device))
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-14).sqrt()


def _valid_frames(lengths: Tensor, window: int, num_samples: int) -> Tensor:
    """(B, T) bool: frames whose centre lies in the valid samples, at least one per example."""
    hop = window // 4
    return torch.arange(num_samples // hop + 1, device=lengths.device) * hop < lengths.clamp(min=1)[:, None]


def _stft_distance(fake: Tensor, real: Tensor, counted: Tensor) -> Tensor:
    """Spectral convergence plus log-magnitude distance of (B, T, F) over the counted frames -> (B,)."""
    weight = counted[..., None]
    error = ((real - fake) * weight).flatten(1).square().sum(1)
    power = (real * weight).flatten(1).square().sum(1)
    convergence = (error.clamp(min=1e-14) / power.clamp(min=1e-6)).sqrt()
    return convergence + _frame_mean((_log(real) - _log(fake)).abs(), counted)


def _frame_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of (B, T, K) over K and the counted frames -> (B,)."""
    return (values.mean(-1) * counted).sum(1) / counted.sum(1)


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=FLOOR).log()


@lru_cache(maxsize=32)
def mel_filterbank(sample_rate: int, window: int, num_bands: int) -> Tensor:
    """(M, F) triangular filters on Slaney's mel scale (linear to 1 kHz, logarithmic above), each of equal area."""
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    edges = _mel_to_hz(torch.linspace(0, _hz_to_mel(sample_rate / 2), num_bands + 2, dtype=torch.float64))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return (torch.minimum(rise, fall).clamp(min=0) * 2 / (high - low)).float()


_LOG_STEP = 0.06875177742094912  # ln(6.4) / 27: 27 mels from 1 kHz to 6.4 kHz


def _hz_to_mel(hz: float) -> float:
    value = torch.tensor(hz, dtype=torch.float64)
    return float(torch.where(value < 1000, value * 0.015, 15 + (value.clamp(min=1000) / 1000).log() / _LOG_STEP))


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel / 0.015, 1000 * ((mel - 15) * _LOG_STEP).exp())
