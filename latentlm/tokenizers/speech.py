"""The speech tokenizer: a causal ConvNeXt σ-VAE, one latent per `hop` samples (PAPER §4.1).

Place in the flow: 1, sound ──▶ latents and back; `base.py` has the base class, `sigma_vae.py` adds the noise,
`causal.py` has the layers, `streaming.py` runs the same networks piece by piece.

    samples (B, S) ─ front ─ [blocks ─ down]… blocks ─ conv ─▶ μ (B, N, C) ─ noise ─▶ z ─ conv ─ blocks ─ [up ─ blocks]…
    ─ head ─▶ samples (B, N·hop)

N = ⌈S / hop⌉: the end of a clip is filled with zeros. Latent n depends on samples up to (n + 1)·hop - 1 only, so
padding does not change the latents of a clip, and a clip has the same latents in any batch.
Departures from the paper: `front: spectral` (see `spectral.py`); adversarial losses are not here.
Legend: `B` clips, `S` samples, `N` latents, `C` latent channels, `D` channels of a stage, `T` steps of a stage.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import SpeechReconstructionConfig, SpeechTokenizerConfig
from ..errors import UserError
from ..media.sound import LOUDEST, Audio, at_rate, normalise_loudness, remark_on_silence
from ..types import MediaBatch
from .base import Tokenizer, collate_media
from .causal import CausalConv, CausalState, ConvNeXtBlock, DownConv, UpConv
from .losses import speech_reconstruction
from .spectral import InverseSTFT, SpectralFeatures
from .streaming import StreamDecoder, StreamEncoder


def stage_channels(config: SpeechTokenizerConfig) -> list[int]:
    """Channels of each stage: doubled at each downsampling, up to `max_channels`."""
    return [min(config.channels * 2**i, config.max_channels) for i in range(len(config.depths))]


class ConvNeXtStage(nn.Module):
    """ConvNeXt blocks at one rate: (B, T, D) -> (B, T, D)."""

    def __init__(self, channels: int, depth: int, config: SpeechTokenizerConfig):
        super().__init__()
        scale = 1.0 / max(sum(config.depths), 1)
        self.blocks = nn.ModuleList(ConvNeXtBlock(channels, config.kernel_size, scale) for _ in range(depth))

    def forward(self, x: Tensor, state: CausalState | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, state)
        return x


class SpeechEncoder(nn.Module):
    """samples (B, N·hop) -> posterior parameters (B, N, P)."""

    def __init__(self, config: SpeechTokenizerConfig, num_parameters: int):
        super().__init__()
        channels = stage_channels(config)
        if config.front == "spectral":
            self.front = SpectralFeatures(config.frame_window, config.frame_hop)
            self.stem = CausalConv(self.front.num_features, channels[0], 1)
        else:
            self.front = None
            self.stem = CausalConv(1, channels[0], config.kernel_size)
        self.stages = nn.ModuleList(ConvNeXtStage(c, d, config) for c, d in zip(channels, config.depths, strict=True))
        self.downs = nn.ModuleList(
            DownConv(channels[i], channels[i + 1], stride) for i, stride in enumerate(config.strides)
        )
        self.head = CausalConv(channels[-1], num_parameters, config.kernel_size)

    def forward(self, samples: Tensor, state: CausalState | None = None) -> Tensor:
        x = samples[..., None] if self.front is None else self.front(samples, state)  # (B, T, features)
        x = self.stages[0](self.stem(x, state), state)
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            x = stage(down(x, state), state)  # (B, T / s, D)
        return self.head(x, state)


class SpeechDecoder(nn.Module):
    """raw latents (B, N, C) -> samples (B, N·hop), `delay` samples late."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        channels = stage_channels(config)[::-1]
        strides, depths = config.strides[::-1], config.depths[::-1]
        self.stem = CausalConv(config.latent_dim, channels[0], config.kernel_size)
        self.stages = nn.ModuleList(ConvNeXtStage(c, d, config) for c, d in zip(channels, depths, strict=True))
        self.ups = nn.ModuleList(UpConv(channels[i], channels[i + 1], stride) for i, stride in enumerate(strides))
        if config.front == "spectral":
            self.head = InverseSTFT(channels[-1], config.frame_window, config.frame_hop)
            self.delay = config.frame_window - config.frame_hop
        else:
            self.head = CausalConv(channels[-1], 1, config.kernel_size)
            self.delay = 0

    def forward(self, latents: Tensor, state: CausalState | None = None) -> Tensor:
        x = self.stages[0](self.stem(latents, state), state)
        for up, stage in zip(self.ups, self.stages[1:], strict=True):
            x = stage(up(x, state), state)  # (B, T·s, D)
        return self.head(x, state).flatten(1)


class SpeechTokenizer(Tokenizer):
    """Mono sound ↔ latents, `rate` of them per second.

    losses: weights of the recipe; losses of weight 0 are not computed.
    """

    modality = "speech"

    def __init__(self, config: SpeechTokenizerConfig, losses: SpeechReconstructionConfig | None = None):
        super().__init__(config)
        self.losses = losses or SpeechReconstructionConfig()
        self.sample_rate = config.sample_rate
        self.hop = config.hop
        self.rate = config.sample_rate / config.hop
        self.encoder = SpeechEncoder(config, self.posterior.num_parameters) if config.parts != "decoder" else None
        self.decoder = SpeechDecoder(config) if config.parts != "encoder" else None
        # Zero latents appended to a clip, so that the decoder gives its last `delay` samples.
        self.num_tail = -(-self.decoder.delay // self.hop) if self.decoder else 0

    def encode_batch(self, media: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveforms (B, 1, S), zero behind `lengths` (B,) -> posterior parameters (B, N, P) and validity (B, N)."""
        self._require("encoder")
        samples = media.squeeze(1)
        samples = F.pad(samples, (0, -samples.shape[-1] % self.hop))
        parameters = self.encoder(samples)
        counts = (lengths + self.hop - 1) // self.hop
        valid = torch.arange(parameters.shape[1], device=media.device) < counts[:, None]
        return parameters, valid

    def decode_batch(self, latents: Tensor) -> Tensor:
        """raw latents (B, N, C), zero where a row has ended -> samples (B, N·hop)."""
        self._require("decoder")
        num_samples = latents.shape[1] * self.hop
        samples = self.decoder(F.pad(latents, (0, 0, 0, self.num_tail)))
        return samples[:, self.decoder.delay :][:, :num_samples]

    def reconstruction(self, output: Tensor, target: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        target = target.squeeze(1)
        output = output[:, : target.shape[-1]]
        return speech_reconstruction(output, target, lengths, self.sample_rate, self.losses)

    def waveform(self, audio: Audio) -> Tensor:
        """A clip as the encoder reads it: (S,) at this tokenizer's rate and loudness; see `prepare_clip`."""
        return prepare_clip(audio, self.sample_rate, self.config.loudness)

    def batch(self, media: list[Audio]) -> MediaBatch:
        """Clips of any rate and length -> (B, 1, S). Raises UserError as `waveform`."""
        return collate_media([self.waveform(audio)[None] for audio in media]).to(self.latent_mean.device)

    def unbatch(self, media: Tensor, counts: list[int]) -> list[Audio]:
        """(B, N·hop) -> clips of counts·hop samples, within ±LOUDEST as `Audio` demands."""
        rows = zip(media.float().cpu(), counts, strict=True)
        return [self.piece(row[: count * self.hop]) for row, count in rows]

    def stream_encoder(self) -> StreamEncoder:
        """A new encoder of one sound, piece by piece. Raises UserError before `calibrate`."""
        self._require("encoder")
        self._require_calibrated()
        return StreamEncoder(self)

    def stream_decoder(self) -> StreamDecoder:
        """A new decoder of one sound's latents, piece by piece. Raises UserError before `calibrate`."""
        self._require("decoder")
        self._require_calibrated()
        return StreamDecoder(self)

    def piece(self, decoded: Tensor) -> Audio:
        """Samples (k,) -> a chunk of sound, within ±LOUDEST as `Audio` demands."""
        return Audio(decoded.float().cpu().clamp(-LOUDEST, LOUDEST), self.sample_rate)

    def _require(self, part: str) -> None:
        if self.config.parts not in ("both", part):
            raise UserError(f"this speech tokenizer has only the {self.config.parts}; the {part} is needed here")


def prepare_clip(audio: Audio, sample_rate: int, loudness: float | None) -> Tensor:
    """The samples (S,) of a clip at this rate and, unless that is None, this loudness in dB.

    Gives a `Notice` where the clip is silent or resampled. Raises UserError, which names the clip, where it is empty,
    not mono, or shorter than a sample at this rate.
    """
    if audio.samples.dim() != 1 or audio.samples.numel() == 0:
        shape, name = tuple(audio.samples.shape), audio.name or "sound without a file"
        raise UserError(f"{name}: audio samples have shape {shape}; expected mono (N,) with N > 0")
    remark_on_silence(audio)
    samples = at_rate(audio, sample_rate).samples.float().cpu()
    return samples if loudness is None else normalise_loudness(samples, loudness)
