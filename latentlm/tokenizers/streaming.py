"""Sound ↔ latents piece by piece, with the same result as for the whole.

Place in the flow: beside `speech.py`, whose `stream_encoder()` and `stream_decoder()` make these objects. Each has the
state of one sound: the samples that do not fill a latent yet, and the past of every causal layer (`CausalState`).
The decoder of the spectral front is `decoder.delay` samples late (30 to 60 ms); `flush` returns the rest.

    encoder = tokenizer.stream_encoder()
    for samples in microphone:
        latents = encoder.push(samples)      # (k, C), k may be 0
    latents = encoder.flush()                # the last latent, if samples are left that do not fill one
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .causal import CausalState


class StreamableTokenizer(Protocol):
    """The parts of `speech.SpeechTokenizer` that are used here."""

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

    def __init__(self, tokenizer: StreamableTokenizer):
        self._tokenizer = tokenizer
        self._state = CausalState()
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
        parameters = tokenizer.encoder(ready[None], self._state)
        mean, _ = tokenizer.posterior.split(parameters[0].float())
        return (mean - tokenizer.latent_mean) / tokenizer.latent_std

    def flush(self) -> Tensor:
        """End the stream: the last latent (1, C), of the samples left and zeros, or (0, C). No `push` after it."""
        missing = -len(self._waiting) % self._tokenizer.hop
        latents = self.push(self._waiting.new_zeros(missing))
        self._open = False
        return latents


class StreamDecoder:
    """Normalised latents in pieces of any size -> samples at the tokenizer's rate, `decoder.delay` samples late."""

    def __init__(self, tokenizer: StreamableTokenizer):
        self._tokenizer = tokenizer
        self._state = CausalState()
        self._num_latents = 0
        self._to_drop = tokenizer.decoder.delay  # output of the network before the first sample of the clip
        self._num_samples = 0
        self._open = True

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """latents (n, C), n ≥ 0 -> samples (k,); k = n·hop, less at the beginning by `decoder.delay`."""
        _require(self._open, latents.dim() == 2, f"expected latents (n, C), got shape {tuple(latents.shape)}")
        self._num_latents += len(latents)
        return self._decode(self._tokenizer.denormalise(latents))

    @torch.no_grad()
    def flush(self) -> Tensor:
        """End the stream: the last `decoder.delay` samples. No `push` after it."""
        _require(self._open, True, "")
        tokenizer = self._tokenizer
        missing = self._num_latents * tokenizer.hop - self._num_samples
        self._open = False
        tail = tokenizer.latent_mean.new_zeros(tokenizer.num_tail if missing else 0, tokenizer.latent_dim)
        return self._decode(tail)[:missing]

    def _decode(self, raw: Tensor) -> Tensor:
        """Raw latents (n, C) -> the next samples (k,)."""
        if len(raw) == 0:
            return raw.new_zeros(0)
        samples = self._tokenizer.decoder(raw[None], self._state)[0]
        dropped = min(self._to_drop, len(samples))
        self._to_drop -= dropped
        self._num_samples += len(samples) - dropped
        return F.pad(samples, (-dropped, 0)).float()


class FeatureStream:
    """The latents of one span, piece by piece -> their sound, and its features by a second tokenizer (PAPER §6).

    The model gets the features of its own answer as input. Raises UserError where the two tokenizers differ in rate,
    and where the decoder has a delay.
    """

    def __init__(self, tokenizer: StreamableTokenizer, second: StreamableTokenizer):
        if (second.hop, second.sample_rate) != (tokenizer.hop, tokenizer.sample_rate):
            rates = [f"{t.hop} samples at {t.sample_rate} Hz" for t in (tokenizer, second)]
            raise UserError(f"a latent stands for {rates[0]}, but a feature for {rates[1]}")
        self._decoder = tokenizer.stream_decoder()
        self._encoder = second.stream_encoder()
        if tokenizer.decoder.delay:
            raise UserError(
                f"features need a decoder without delay; this one is {tokenizer.decoder.delay} samples late"
            )

    def push(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents (n, C) -> samples (n·hop,) and features (n, F)."""
        samples = self._decoder.push(latents)
        return samples, self._encoder.push(samples)


def _require(is_open: bool, fits: bool, message: str) -> None:
    if not is_open:
        raise UserError("this stream was flushed; open another one")
    if not fits:
        raise UserError(message)
