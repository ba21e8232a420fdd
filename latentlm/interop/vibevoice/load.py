"""Loads a VibeVoice checkpoint as a Pipeline: text tokenizer, both speech tokenizers, model.

Place in the flow: interop, the entry point of this folder.
Normalised latents are z' = (z + bias)·scale there and (z - latent_mean) / latent_std here. Their σ is in units of raw
latents, our C_σ is relative to the latents' std: C_σ = noise·scale (PAPER §1.6, §1.7).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...config import read_json
from ...errors import UserError
from ...generation.pipeline import Pipeline
from ...model.latentlm import LatentLM, ModalitySpec
from ...tokenizers.sigma_vae import Posterior
from ...tokenizers.speech import SpeechTokenizer
from ...tokenizers.text import SpecialTokens, TextTokenizer
from ..checkpoint_files import CheckpointFiles, locate
from ..hf_llm import HEAD, IGNORE, check_tied
from ..mapping import fill
from .configs import VibeVoice, read_config
from .names import BACKBONE, rules

KEPT = ("*.latent_mean", "*.latent_std", "*.posterior.*")
"""Buffers that `build` sets: no rule fills them."""

PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def load(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Pipeline:
    """The model in a folder or of a hub id, in either layout.

    tokenizer: a tokenizer.json, or a folder with one, where the checkpoint has none (Microsoft's checkpoints use that
    of Qwen2.5). dtype: of the model; the speech tokenizers stay in fp32. Raises UserError, one line, for a field that
    is not supported, weights that do not fit, and a file that is missing.
    """
    files, found = open_checkpoint(path)
    if found.semantic is None:
        raise UserError(f"{files.path}: VibeVoice-Realtime cannot generate here; `load_realtime` loads its parts")
    text = read_text_tokenizer(files.folder, tokenizer, found)
    scale, bias = read_factors(files, found)
    found = with_processor(found, files.folder, scale)
    if found.model.transformer.tied_embeddings:
        check_tied(files, f"{BACKBONE}embed_tokens.weight")
    whole = build(found, scale, bias, dtype)
    fill(whole, files, rules(found.layout, found.model, found.speech, found.semantic), ignore=unread(found), keep=KEPT)
    whole = whole.eval().to(device)
    return Pipeline(whole["model"], {"text": text, "speech": whole["speech"], "semantic": whole["semantic"]})


def open_checkpoint(path: str | Path) -> tuple[CheckpointFiles, VibeVoice]:
    """The files and the configuration of a checkpoint. Raises UserError naming the file."""
    files = CheckpointFiles.open(locate(path))
    try:
        return files, read_config(files.config)
    except UserError as error:
        raise UserError(f"{files.folder / 'config.json'}: {error}") from None


def unread(found: VibeVoice) -> tuple[str, ...]:
    """Names in a checkpoint that no rule reads: the scale and bias of the latents, and a head tied to the embedding."""
    tied = (HEAD,) if found.model.transformer.tied_embeddings else ()
    return (found.layout.scale, found.layout.bias, *IGNORE, *tied)


def build(found: VibeVoice, scale: float, bias: float, dtype: torch.dtype) -> nn.ModuleDict:
    """The model and the tokenizers, on the meta device; the normalisation of the latents has its values."""
    special = SpecialTokens.after(found.vocab_size, found.special)
    spec = ModalitySpec(found.speech.latent_dim, None, found.semantic.latent_dim)
    with torch.device("meta"):
        model = LatentLM(found.model, found.vocab_size, special, {"speech": spec}).to(dtype)
        speech, semantic = SpeechTokenizer(found.speech), SpeechTokenizer(found.semantic)
    normalise(speech, -bias, 1 / scale)
    normalise(semantic, 0.0, 1.0)
    return nn.ModuleDict({"model": model, "speech": speech, "semantic": semantic})


def normalise(tokenizer: SpeechTokenizer, mean: float, std: float) -> None:
    """Set the buffers of a tokenizer on the meta device that no rule fills: its normalisation and posterior."""
    config = tokenizer.config
    tokenizer.latent_mean, tokenizer.latent_std = torch.tensor(mean), torch.tensor(std)
    tokenizer.posterior = Posterior(config.posterior, config.latent_dim, config.per_channel)


def with_processor(found: VibeVoice, folder: Path, scale: float) -> VibeVoice:
    """`found` with the sample rate and loudness of clips, and with C_σ = noise·`scale`.

    Rate and loudness come from the processor's files in `folder`; the defaults are those of their code.
    """
    fields: dict = {}
    for name in PROCESSORS:
        if (folder / name).is_file():
            fields |= read_json(folder / name)
    audio = fields.get("audio_processor", fields.get("feature_extractor", fields))
    rate, level = audio.get("sampling_rate", 24000), audio.get("target_dB_FS", -25)
    for name, value in (("sampling_rate", rate), ("target_dB_FS", level)):
        if not isinstance(value, int | float):
            raise UserError(f"{folder}: {name} {value!r} of {' or '.join(PROCESSORS)} is not a number")
    loud = audio.get("normalize_audio", True) and fields.get("db_normalize", True)
    heard = {
        "sample_rate": int(rate),
        "loudness": float(level) if loud else None,
    }
    posterior = found.speech.posterior.model_copy(update={"c_sigma": found.noise * scale})
    semantic = None if found.semantic is None else found.semantic.model_copy(update=heard)
    return replace(found, speech=found.speech.model_copy(update=heard | {"posterior": posterior}), semantic=semantic)


def read_factors(files: CheckpointFiles, found: VibeVoice) -> tuple[float, float]:
    """Scale and bias of the latents. Raises UserError where they are missing or not finite (never fitted)."""
    values = []
    for name in (found.layout.scale, found.layout.bias):
        if name not in files.names:
            raise UserError(f"{files.path}: {name} is missing")
        if files.shape(name) not in ((), (1,)):
            raise UserError(f"{files.path}: {name} has shape {files.shape(name)}, expected one number")
        values.append(float(files.read(name)))
    scale, bias = values
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(bias)):
        raise UserError(f"{files.path}: {found.layout.scale} is {scale}, {found.layout.bias} is {bias}: never fitted")
    return scale, bias


def read_text_tokenizer(folder: Path, given: str | Path | None, found: VibeVoice) -> TextTokenizer:
    """The text tokenizer: the one given, or tokenizer.json of the checkpoint.

    Raises UserError, saying where to put tokenizer.json, if there is none.
    """
    path = Path(given) if given is not None else folder
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; VibeVoice reads text by the tokenizer of Qwen2.5: put the tokenizer.json of "
            "Qwen/Qwen2.5-1.5B there"
        )
    return TextTokenizer.from_backbone(path, found.vocab_size, found.special)
