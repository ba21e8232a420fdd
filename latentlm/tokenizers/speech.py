"""The speech tokenizer: a causal ConvNeXt σ-VAE, 1 / hop latents a sample (PAPER §4.1).

Place in the flow: 1, sound ──▶ latents and back; `base.py` says what a tokenizer owes, `sigma_vae.py` adds the noise,
`causal.py` has the layers, `streaming.py` runs the same networks piece by piece.

    samples (B, S) ─ front ─ [blocks ─ down]… blocks ─ conv ─▶ μ (B, N, C) ─ noise ─▶ z ─ conv ─ blocks ─ [up ─ blocks]…
    ─ head ─▶ samples (B, N·hop)

N = ⌈S / hop⌉: the end of a clip is filled with zeros. Latent n sees samples up to (n + 1)·hop - 1 and nothing later, so
padding behind a clip cannot reach its latents, and a batch gives what each clip alone gives.
Departures from the paper: `front: spectral` (see `spectral.py`); adversarial terms are not part of this module.
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
from .base import Tokenizer
from .causal import CausalConv, ConvNeXtBlock, DownConv, Stream, UpConv
from .losses import speech_reconstruction
from .spectral import InverseSTFT, SpectralFeatures
from .streaming import StreamDecoder, StreamEncoder


def stage_channels(config: SpeechTokenizerConfig) -> list[int]:
    """Channels of each stage: doubled at each downsampling up to the maximum."""
    return [min(config.channels * 2**i, config.max_channels) for i in range(len(config.depths))]


class Stage(nn.Module):
    """ConvNeXt blocks at one rate: (B, T, D) -> (B, T, D)."""

    def __init__(self, channels: int, depth: int, config: SpeechTokenizerConfig):
        super().__init__()
        scale = 1.0 / max(sum(config.depths), 1)
        self.blocks = nn.ModuleList(ConvNeXtBlock(channels, config.kernel_size, scale) for _ in range(depth))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, stream)
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
        self.stages = nn.ModuleList(Stage(c, d, config) for c, d in zip(channels, config.depths, strict=True))
        self.downs = nn.ModuleList(
            DownConv(channels[i], channels[i + 1], stride) for i, stride in enumerate(config.strides)
        )
        self.head = CausalConv(channels[-1], num_parameters, config.kernel_size)

    def forward(self, samples: Tensor, stream: Stream | None = None) -> Tensor:
        x = samples[..., None] if self.front is None else self.front(samples, stream)  # (B, T, features)
        x = self.stages[0](self.stem(x, stream), stream)
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            x = stage(down(x, stream), stream)  # (B, T / s, D)
        return self.head(x, stream)


class SpeechDecoder(nn.Module):
    """raw latents (B, N, C) -> samples (B, N·hop), `delay` samples late."""

    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        channels = stage_channels(config)[::-1]
        strides, depths = config.strides[::-1], config.depths[::-1]
        self.stem = CausalConv(config.latent_dim, channels[0], config.kernel_size)
        self.stages = nn.ModuleList(Stage(c, d, config) for c, d in zip(channels, depths, strict=True))
        self.ups = nn.ModuleList(UpConv(channels[i], channels[i + 1], stride) for i, stride in enumerate(strides))
        if config.front == "spectral":
            self.head = InverseSTFT(channels[-1], config.frame_window, config.frame_hop)
            self.delay = config.frame_window - config.frame_hop
        else:
            self.head = CausalConv(channels[-1], 1, config.kernel_size)
            self.delay = 0

    def forward(self, latents: Tensor, stream: Stream | None = None) -> Tensor:
        x = self.stages[0](self.stem(latents, stream), stream)
        for up, stage in zip(self.ups, self.stages[1:], strict=True):
            x = stage(up(x, stream), stream)  # (B, T·s, D)
        return self.head(x, stream).flatten(1)


class SpeechTokenizer(Tokenizer):
    """Mono sound ↔ latents at `rate` Hz. `losses` holds the recipe's weights; losses without one are not computed."""

    modality = "speech"

    def __init__(self, config: SpeechTokenizerConfig, losses: SpeechReconstructionConfig | None = None):
        _check_front(config)
        super().__init__(config)
        self.losses = losses or SpeechReconstructionConfig()
        self.sample_rate = config.sample_rate
        self.hop = config.hop
        self.rate = config.sample_rate / config.hop
        self.encoder = SpeechEncoder(config, self.posterior.num_parameters) if config.parts != "decoder" else None
        self.decoder = SpeechDecoder(config) if config.parts != "encoder" else None
        # The decoder runs this many zero latents past the end of a clip, to fill the last `delay` samples.
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
        """A clip as the encoder is given it: (S,) at this tokenizer's rate and loudness. That it was resampled is said.

        UserError, naming the file, for a clip that is empty or not mono.
        """
        return prepare_clip(audio, self.sample_rate, self.config.loudness)

    def batch(self, media: list[Audio]) -> MediaBatch:
        """Clips of any rate and length -> (B, 1, S); each as `waveform`, whose UserError this raises too."""
        samples = [self.waveform(audio) for audio in media]
        lengths = torch.tensor([len(x) for x in samples])
        waveforms = nn.utils.rnn.pad_sequence(samples, batch_first=True)[:, None]
        return MediaBatch(waveforms, lengths).to(self.latent_mean.device)

    def unbatch(self, media: Tensor, counts: list[int]) -> list[Audio]:
        """(B, N·hop) -> clips of counts·hop samples, within ±LOUDEST as `Audio` demands."""
        rows = zip(media.float().cpu(), counts, strict=True)
        return [self.piece(row[: count * self.hop]) for row, count in rows]

    def stream_encoder(self) -> StreamEncoder:
        """A new stream of samples ──▶ normalised latents; UserError before `calibrate`."""
        self._require("encoder")
        self._require_calibrated()
        return StreamEncoder(self)

    def stream_decoder(self) -> StreamDecoder:
        """A new stream of normalised latents ──▶ samples; UserError before `calibrate`."""
        self._require("decoder")
        self._require_calibrated()
        return StreamDecoder(self)

    def piece(self, decoded: Tensor) -> Audio:
        """Samples (k,) -> a chunk of sound, within ±LOUDEST as `Audio` demands."""
        return Audio(decoded.float().cpu().clamp(-LOUDEST, LOUDEST), self.sample_rate)

    def _require(self, part: str) -> None:
        if self.config.parts not in ("both", part):
            raise UserError(f"this speech tokenizer holds the {self.config.parts} alone; this needs the {part}")


def prepare_clip(audio: Audio, sample_rate: int, loudness: float | None) -> Tensor:
    """A clip (S,) at this rate and loudness, as an encoder is given it; see `SpeechTokenizer.waveform`."""
    if audio.samples.dim() != 1 or audio.samples.numel() == 0:
        shape, name = tuple(audio.samples.shape), audio.name or "sound without a file"
        raise UserError(f"{name}: audio samples have shape {shape}; expected mono (N,) with N > 0")
    remark_on_silence(audio)
    samples = at_rate(audio, sample_rate).samples.float().cpu()
    return samples if loudness is None else normalise_loudness(samples, loudness)


def _check_front(config: SpeechTokenizerConfig) -> None:
    window, hop = config.frame_window, config.frame_hop
    if config.front == "waveform" and hop != 1:
        raise UserError(f"frame_hop {hop}: the waveform front works on samples, frame_hop is 1 there")
    if config.front == "spectral" and (window % (2 * hop) or window < 2 * hop):
        raise UserError(f"frame_window {window} is not an even multiple of frame_hop {hop}")
