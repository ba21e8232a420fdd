"""The base class of continuous tokenizers: media ↔ normalised latents.

Place in the flow: 1, media ──▶ latents and back. Subclasses are in `image.py`, `conv_image.py`, `speech.py` and
`modalities/vectors.py`; the noise is in `sigma_vae.py`.
A tokenizer contains its normalisation (PAPER §1.6): the model works on z' = (z - latent_mean) / latent_std. The two
buffers are saved with the weights. `calibrate` fits them to the valid latents of given media; until then they are NaN,
and encoding is an error.
Legend: `B` examples, `N` latents, `C` latent channels, `P` posterior parameters per latent (C, or 2C for a learned σ).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..config import FORMAT_VERSION, PosteriorConfig
from ..errors import UserError
from ..types import Latents, MediaBatch
from ..weights import fingerprint, load_weights, save_weights, write_text
from .sigma_vae import Posterior, RunningMoments

MEDIA_PER_CALL = 32
"""`encode` and `decode` process longer lists in parts of this length, which limits their memory."""


FINGERPRINT_OPTIONAL = frozenset({"parts", "loudness", "class_token", "encoder_sub_norm", "fit"})
"""Options newer than the first latent caches. At their defaults, fingerprints omit them, so that old ones hold."""
RESUME_OPTIONAL = frozenset({"fit"})
"""Options newer than the checkpoints of runs that can still be resumed, likewise."""


def fields_without(config: TokenizerConfig, optional: frozenset[str]) -> dict[str, Any]:
    """The fields of `config` as JSON, without those in `optional` that have their defaults."""
    fields, declared = config.model_dump(mode="json"), type(config).model_fields
    return {name: value for name, value in fields.items() if name not in optional or value != declared[name].default}


class TokenizerConfig(Protocol):
    """The fields that every tokenizer's config has; it is a pydantic model."""

    kind: str
    latent_dim: int
    per_channel: bool
    posterior: PosteriorConfig


def collate_media(examples: Sequence[Tensor], seed: int = 0) -> MediaBatch:
    """Tensors (..., S) that differ at most in their last dimension as one batch, zero-padded to the longest."""
    lengths = torch.tensor([example.shape[-1] for example in examples])
    longest = int(lengths.max())
    media = torch.stack([nn.functional.pad(example, (0, longest - example.shape[-1])) for example in examples])
    return MediaBatch(media, lengths, seed)


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`: mean and std of μ, () or (C,) each, over `num_latents` valid latents.

    c_sigma is relative to std(μ), as in the config; c_sigma_absolute = c_sigma·std is in raw latent units, for
    comparison with papers that give an absolute σ (PAPER §1.7). Both are None unless the posterior is "sigma".
    """

    mean: Tensor
    std: Tensor
    num_latents: int
    c_sigma: float | None
    c_sigma_absolute: Tensor | None


class StreamDecoder(Protocol):
    """Decodes the latents of one medium piece by piece. The pieces, concatenated, equal the result of `decode`."""

    def push(self, latents: Tensor) -> Tensor:
        """Normalised latents (n, C), n ≥ 0 -> the next piece."""
        ...

    def flush(self) -> Tensor:
        """End the stream and return the rest."""
        ...


class Tokenizer(nn.Module):
    """Base class of continuous tokenizers. A subclass implements the methods that raise NotImplementedError here.

    `reconstruction` is needed for training only, `piece` for streaming only.
    """

    modality: ClassVar[str]
    num_latents: int | None = None
    """Number of latents of every medium; None where media differ in length."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.posterior = Posterior(config.posterior, config.latent_dim, config.per_channel)
        shape = (config.latent_dim,) if config.per_channel else ()
        self.register_buffer("latent_mean", torch.full(shape, float("nan")))
        self.register_buffer("latent_std", torch.full(shape, float("nan")))

    # ------------------------------------------------------------ for the subclass

    def batch(self, media: list[Any]) -> MediaBatch:
        """Media of any size or rate as one batch for this tokenizer's networks."""
        raise NotImplementedError

    def encode_batch(self, media: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """media -> posterior parameters (B, N, P) in raw latent units, and validity (B, N) bool."""
        raise NotImplementedError

    def decode_batch(self, latents: Tensor) -> Tensor:
        """raw latents (B, N, C) -> media."""
        raise NotImplementedError

    def unbatch(self, media: Tensor, counts: list[int]) -> list[Any]:
        """A batch of decoded media, of `counts` latents each, as a list of PIL images, Audio or arrays."""
        raise NotImplementedError

    def reconstruction(self, output: Tensor, target: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Named losses (B,), each the mean over its own example."""
        raise NotImplementedError

    def stream_decoder(self) -> StreamDecoder | None:
        """A new decoder of one medium's latents, piece by piece; None where a medium is only decoded whole."""
        return None

    def piece(self, decoded: Tensor) -> Any:
        """The output of a stream decoder as a medium: a chunk of Audio, or an array."""
        raise NotImplementedError

    # ------------------------------------------------------------ media ↔ latents

    @torch.no_grad()
    def encode(self, media: list[Any]) -> list[Latents]:
        """The normalised posterior of each item, mean (N, C). An item's latents do not depend on the others.

        Raises UserError before `calibrate`.
        """
        self._require_calibrated()
        result: list[Latents] = []
        for start in range(0, len(media), MEDIA_PER_CALL):
            batch = self.batch(media[start : start + MEDIA_PER_CALL])
            parameters, valid = self.encode_batch(batch.media, batch.lengths)
            mean, std = self.posterior.split(parameters.float())
            mean = (mean - self.latent_mean) / self.latent_std
            std = None if std is None else std / self.latent_std
            for row, count in enumerate(valid.sum(1).tolist()):
                spread = self.posterior.spread(mean[row]) if std is None else std[row, :count].clone()
                result.append(Latents(mean[row, :count].clone(), spread, self.config.posterior.kind))
        return result

    @torch.no_grad()
    def decode(self, latents: list[Tensor]) -> list[Any]:
        """The medium of each item's normalised latents (N, C).

        Raises UserError before `calibrate` and for latents of another width.
        """
        self._require_calibrated()
        result: list[Any] = []
        for start in range(0, len(latents), MEDIA_PER_CALL):
            part = latents[start : start + MEDIA_PER_CALL]
            raw = [self.denormalise(z) for z in part]
            padded = nn.utils.rnn.pad_sequence(raw, batch_first=True)  # (B, N, C)
            if padded.shape[1] == 0:  # empty spans; the networks need at least one latent
                padded = padded.new_zeros(len(raw), 1, self.latent_dim)
            media = self.decode_batch(padded)
            result.extend(self.unbatch(media, [len(z) for z in part]))
        return result

    def denormalise(self, latents: Tensor) -> Tensor:
        """Normalised latents (N, C) in raw units: z'·std + mean. Raises UserError for another width."""
        if latents.dim() != 2 or latents.shape[1] != self.latent_dim:
            raise UserError(f"latents have shape {tuple(latents.shape)}; this tokenizer reads (N, {self.latent_dim})")
        return latents.to(self.latent_std) * self.latent_std + self.latent_mean

    def _require_calibrated(self) -> None:
        if bool(torch.isnan(self.latent_std).any()):
            raise UserError(
                f"this {self.modality} tokenizer is not calibrated: its latent mean and std are NaN; "
                "run `calibrate` on training media first"
            )

    # ------------------------------------------------------------ training

    def forward(self, batch: MediaBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Named losses, summed over the examples of the batch: the reconstruction losses with a weight, and "prior".

        "prior" is the mean of μ² over the latents and channels of an example, which the authors use for the KL term
        (PAPER §1.7); for a learned σ it is the mean of the KL divergence.
        """
        parameters, valid = self.encode_batch(batch.media, batch.lengths)
        z, prior = self.posterior(parameters.float(), valid, generator)
        output = self.decode_batch(z)
        with torch.autocast(output.device.type, enabled=False):  # autocast would run the mel filters in half precision
            losses = self.reconstruction(output.float(), batch.media.float(), batch.lengths)
        if self.config.posterior.weight > 0:
            losses["prior"] = prior
        return {name: value.sum() for name, value in losses.items()}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[MediaBatch]) -> Calibration:
        """Fit `latent_mean` and `latent_std` to μ over the valid latents of `batches`, in fp64.

        Raises UserError if there are no valid latents, or if μ does not vary.
        """
        moments = RunningMoments(self.config.per_channel)
        for batch in batches:
            batch = batch.to(self.latent_mean.device)
            parameters, valid = self.encode_batch(batch.media, batch.lengths)
            mean, _ = self.posterior.split(parameters)
            moments.update(mean[valid])
        mean, std = moments.result()
        if not bool((std > 0).all()):
            raise UserError(f"the latents do not vary over the {moments.count} calibration latents: std {std.tolist()}")
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        c_sigma = self.config.posterior.c_sigma if self.config.posterior.kind == "sigma" else None
        absolute = None if c_sigma is None else c_sigma * self.latent_std
        return Calibration(self.latent_mean.clone(), self.latent_std.clone(), moments.count, c_sigma, absolute)

    # ------------------------------------------------------------ files

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over config, weights and buffers. Latent caches are marked with it."""
        return fingerprint(fields_without(self.config, FINGERPRINT_OPTIONAL), self.state_dict())

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"format_version": FORMAT_VERSION} | self.config.model_dump(mode="json")
        write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
        save_weights(folder / "model.safetensors", self.state_dict())

    def load_weights(self, folder: str | Path) -> None:
        """Read model.safetensors in `folder`. Raises UserError where keys or shapes differ."""
        load_weights(Path(folder) / "model.safetensors", self)
