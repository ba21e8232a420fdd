"""Latents on disk: the files that keep encoded media, found again by what they were made from.

Place in the flow: 2, below the cache. Posterior means and deviations are kept, not samples. A file records the
fingerprint of its tokenizer and a hash of its media; so that latents of another tokenizer are refused.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..config.modalities import modality
from ..errors import UserError
from ..types import Latents
from ..weights import replacing

CHUNK = 1024
"""Media per file."""
WRITE_SECONDS = 2.0
"""How often a file is written while its media are being encoded."""


class LatentStore:
    """A folder of latents that any number of runs share: FOLDER/TOKENIZER-FINGERPRINT/HASH-OF-THE-MEDIA.safetensors.

    A file holds the latents of CHUNK media, or of the first of them while they are being encoded. It is replaced as a
    whole, and each version is a beginning of the same list, so several processes may write at the same time.
    """

    def __init__(self, folder: str | Path, chunk: int = CHUNK, write_seconds: float = WRITE_SECONDS):
        self.folder = Path(folder)
        self.chunk, self.write_seconds = chunk, write_seconds

    def encode(self, name: str, tokenizer: Any, media: Sequence, batch_size: int) -> Iterator[list[Latents]]:
        """Yield the latents of `media` in order, in lists: read if they are on disk, else encoded and written.

        name: of the tokenizer. What has been encoded is written too when the iteration is interrupted.
        Raises UserError for a file that cannot be read or written.
        """
        fingerprint = tokenizer.fingerprint()
        for start in range(0, len(media), self.chunk):
            chunk = media[start : start + self.chunk]
            key = media_hash(tokenizer.modality, chunk, digits=32)
            path = self.folder / f"{name}-{fingerprint}" / f"{key}.safetensors"
            identity = {"fingerprint": fingerprint, "media": key}
            latents = read_latents(path, identity) if path.is_file() else []
            if latents:
                yield list(latents)
            if len(latents) < len(chunk):
                yield from self._encode_rest(path, identity, tokenizer, chunk, latents, batch_size)

    def _encode_rest(
        self, path: Path, identity: dict[str, str], tokenizer: Any, chunk: Sequence, known: list[Latents], size: int
    ) -> Iterator[list[Latents]]:
        """The latents of `chunk` after the `known` ones; the file grows every `write_seconds`."""
        latents, num_written, last = list(known), len(known), time.monotonic()
        try:
            for start in range(len(known), len(chunk), size):
                new = encode_batch(tokenizer, chunk[start : start + size])
                latents += new
                yield new
                if time.monotonic() - last >= self.write_seconds:
                    _write(path, latents, identity)
                    num_written, last = len(latents), time.monotonic()
        finally:
            if len(latents) > num_written:
                _write(path, latents, identity)


def encode_batch(tokenizer: Any, media: Sequence) -> list[Latents]:
    """The latents of a few media, on the CPU."""
    return [latents.to("cpu") for latents in tokenizer.encode(list(media))]


def _write(path: Path, latents: Sequence[Latents], identity: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_latents(path, latents, identity)
    except OSError as error:
        reason = f"encoded media cannot be kept here ({error.strerror}); LATENTLM_CACHE names another folder"
        raise UserError(f"{error.filename or path}: {reason}") from None


def write_latents(path: Path, latents: Sequence[Latents], identity: dict[str, str]) -> None:
    """All latents of one modality in one file, atomically. OSError naming it where it cannot be written."""
    posterior = latents[0].posterior
    tensors = {
        "mean": torch.cat([item.mean for item in latents]),
        "length": torch.tensor([len(item) for item in latents]),
        "std": torch.cat([item.std for item in latents]) if posterior == "learned" else latents[0].std.reshape(1),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"identity": json.dumps(identity), "posterior": posterior})


def read_latents(path: Path, identity: dict[str, str]) -> list[Latents]:
    """Latents written by `write_latents`; UserError naming a file of another tokenizer or media, or a broken one."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found, posterior = json.loads(metadata["identity"]), metadata["posterior"]
            mean, length, std = (file.get_tensor(key) for key in ("mean", "length", "std"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not readable as latents ({error}); delete it to go on") from None
    for key, what in (("fingerprint", "another tokenizer"), ("media", "other media")):
        if found.get(key) != identity[key]:
            raise UserError(
                f"{path}: latents of {what} ({key} {found.get(key)}, expected {identity[key]}); delete it to go on"
            )
    lengths = length.tolist()
    means = mean.split(lengths)
    stds = std.split(lengths) if posterior == "learned" else [std[0]] * len(means)
    return [Latents(m, s, posterior) for m, s in zip(means, stds, strict=True)]


def media_hash(name: str, items: Sequence, digits: int = 16) -> str:
    """Hash of the content of media of modality `name`, in order: `digits` hexadecimal digits."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(modality(name).digest(item))
    return digest.hexdigest()[:digits]
