"""Sound ↔ latents piece by piece, with the result of the whole (DESIGN: streamed equals one-shot).

Place in the flow: beside `speech.py`, whose `stream_encoder()` and `stream_decoder()` make these objects. Each owns the
state of one stream: the samples that do not fill a latent yet, and the past of every causal layer (`causal.Stream`).
What was given out never changes afterwards. The decoder of the spectral front runs `decoder.delay` samples behind its
input (30 to 60 ms); `flush` gives the rest.

    encoder = tokenizer.stream_encoder()
    for samples in microphone:
        latents = encoder.push(samples)      # (k, C), k may be 0
    latents = encoder.flush()                # the last latent, where the end was not a multiple of the hop
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .causal import Stream


class SpeechTokenizer(Protocol):
    """What a stream needs of the tokenizer of `speech.py` that opens it; each is described there."""

    hop: int
    sample_rate: int
    latent_dim: int
    num_tail: int
    latent_mean: Tensor
    latent_std: Tensor
    posterior: Any
    encoder: Any
    decoder: Any

    def denormalise(self, latents: Tensor) -> Tensor: ...
    def stream_encoder(self) -> StreamEncoder: ...
    def stream_decoder(self) -> StreamDecoder: ...


class StreamEncoder:
    """Samples at the tokenizer's rate, in pieces of any size -> normalised means μ."""

    def __init__(self, tokenizer: SpeechTokenizer):
        self._tokenizer = tokenizer
        self._stream = Stream()
        self._waiting = torch.zeros(0, device=tokenizer.latent_mean.device)
        self._open = True

    @torch.no_grad()
    def push(self, samples: Tensor) -> Tensor:
        """samples (n,) float in [-1, 1], n ≥ 0 -> the latents (k, C) that they complete."""
        _require(self._open, samples.dim() == 1, f"expected mono samples (n,), got shape {tuple(samples.shape)}")
        tokenizer = self._tokenizer
        self._waiting = torch.cat((self._waiting, samples.to(self._waiting)))
        num_latents = len(self._waiting) // tokenizer.hop
        if num_latents == 0:
            return self._waiting.new_zeros(0, tokenizer.latent_dim)
        ready = self._waiting[: num_latents * tokenizer.hop]
        self._waiting = self._waiting[len(ready) :]
        parameters = tokenizer.encoder(ready[None], self._stream)
        mean, _ = tokenizer.posterior.split(parameters[0].float())
        return (mean - tokenizer.latent_mean) / tokenizer.latent_std

    def flush(self) -> Tensor:
        """End the stream: the last latent (1, C) over samples filled up with zeros, or (0, C). No `push` after it."""
        missing = -len(self._waiting) % self._tokenizer.hop
        latents = self.push(self._waiting.new_zeros(missing))
        self._open = False
        return latents


class StreamDecoder:
    """Normalised latents in pieces of any size -> samples at the tokenizer's rate, `decoder.delay` samples late."""

    def __init__(self, tokenizer: SpeechTokenizer):
        self._tokenizer = tokenizer
        self._stream = Stream()
        self._num_latents = 0
        self._to_drop = tokenizer.decoder.delay  # what the network says before the first sample of the clip
        self._num_samples = 0
        self._open = True

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """latents (n, C), n ≥ 0 -> samples (k,). k = n·hop, but for the delay at the beginning."""
        _require(self._open, latents.dim() == 2, f"expected latents (n, C), got shape {tuple(latents.shape)}")
        self._num_latents += len(latents)
        return self._decode(self._tokenizer.denormalise(latents))

    @torch.no_grad()
    def flush(self) -> Tensor:
        """End the stream: the samples that the delay held back. No `push` after it."""
        _require(self._open, True, "")
        tokenizer = self._tokenizer
        missing = self._num_latents * tokenizer.hop - self._num_samples
        self._open = False
        tail = tokenizer.latent_mean.new_zeros(tokenizer.num_tail if missing else 0, tokenizer.latent_dim)
        return self._decode(tail)[:missing]

    def _decode(self, raw: Tensor) -> Tensor:
        """Raw latents (n, C) -> the samples (k,) that follow those given out before."""
        if len(raw) == 0:
            return raw.new_zeros(0)
        samples = self._tokenizer.decoder(raw[None], self._stream)[0]
        dropped = min(self._to_drop, len(samples))
        self._to_drop -= dropped
        self._num_samples += len(samples) - dropped
        return F.pad(samples, (-dropped, 0)).float()


class FeatureStream:
    """What a model hears of its own answer: latents of one span in pieces -> their sound and its features (PAPER §6).

    Raises UserError where the two tokenizers do not run at one rate, or the sound comes later than its latents.
    """

    def __init__(self, tokenizer: SpeechTokenizer, second: SpeechTokenizer):
        if (second.hop, second.sample_rate) != (tokenizer.hop, tokenizer.sample_rate):
            rates = [f"{t.hop} samples at {t.sample_rate} Hz" for t in (tokenizer, second)]
            raise UserError(f"a latent is {rates[0]}, its features are of {rates[1]}")
        self._decoder = tokenizer.stream_decoder()
        self._encoder = second.stream_encoder()
        if tokenizer.decoder.delay:
            raise UserError(f"features need sound at once; this decoder is {tokenizer.decoder.delay} samples late")

    def push(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents (n, C) -> samples (n·hop,) and features (n, F)."""
        samples = self._decoder.push(latents)
        return samples, self._encoder.push(samples)


def _require(is_open: bool, fits: bool, message: str) -> None:
    if not is_open:
        raise UserError("this stream was flushed; open another one")
    if not fits:
        raise UserError(message)
