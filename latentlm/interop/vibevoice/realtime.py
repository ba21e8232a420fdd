"""The released parts of VibeVoice-Realtime-0.5B as modules of ours.

Place in the flow: interop, beside `load.py`. The release has no encoder, so it cannot take a voice from a clip. It
generates by a loop of its own (windows of 5 tokens and 6 latents through two stacks of one Qwen2), which is not
implemented here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...config import TransformerConfig
from ...errors import UserError
from ...model.heads.diffusion_network import DiffusionNetwork
from ...model.layers import Connector
from ...model.transformer import Transformer
from ...tokenizers.speech import SpeechTokenizer
from ..hf_llm import IGNORE
from ..hf_llm import rules as backbone_rules
from ..mapping import Rule, fill
from .configs import VibeVoice
from .load import KEPT, normalise, open_checkpoint, read_factors, with_processor
from .names import connector_rules, half_rules, head_rules

UNUSED = ("model.tts_language_model.embed_tokens.weight", "model.acoustic_tokenizer.encoder.*")
"""The upper stack reads hidden states, not tokens; the encoder is not released (random weights where a file has it)."""


class RealtimeParts(nn.Module):
    """The parts of the model.

    speech                      acoustic tokenizer, decoder only
    embed_tokens, text_layers   the lower layers, which read text; without a final norm
    speech_layers               the upper layers
    input_types                 (2, D), added to their inputs: row 0 to speech, row 1 to text
    connector                   latents ──▶ inputs
    head                        hidden states ──▶ latents
    ends                        hidden state ──▶ logit of the end
    """

    def __init__(self, found: VibeVoice):
        super().__init__()
        config, num_upper = found.model.transformer, found.num_upper
        width, latent_dim = config.width, found.speech.latent_dim
        self.speech = SpeechTokenizer(found.speech)
        self.embed_tokens = nn.Embedding(found.vocab_size, width)
        self.text_layers = Transformer(_layers(config, config.num_layers - num_upper))
        self.text_layers.norm = nn.Identity()
        self.speech_layers = Transformer(_layers(config, num_upper))
        self.input_types = nn.Embedding(2, width)
        self.connector = Connector(latent_dim, width)
        self.head = DiffusionNetwork(width, latent_dim, found.model.head)
        self.ends = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def load_realtime(path: str | Path) -> RealtimeParts:
    """The parts in a folder or of a hub id, in fp32. Raises UserError saying what does not fit."""
    files, found = open_checkpoint(path)
    if found.num_upper is None:
        raise UserError(f"{files.path}: not VibeVoice-Realtime, which has tts_backbone_num_hidden_layers; use `load`")
    scale, bias = read_factors(files, found)
    found = with_processor(found, files.folder, scale)
    with torch.device("meta"):
        parts = RealtimeParts(found)
    normalise(parts.speech, -bias, 1 / scale)
    fill(parts, files, realtime_rules(found), ignore=realtime_unread(found), keep=KEPT)
    return parts.eval()


def realtime_unread(found: VibeVoice) -> tuple[str, ...]:
    """Names in a checkpoint that no rule reads."""
    return (found.layout.scale, found.layout.bias, *IGNORE, *UNUSED)


def realtime_rules(found: VibeVoice) -> list[Rule]:
    """The rules for all parts."""
    config, layout = found.model.transformer, found.layout
    lower, upper = _layers(config, config.num_layers - found.num_upper), _layers(config, found.num_upper)
    rules = [
        replace(rule, target=rule.target.replace("transformer.", "text_layers."))
        for rule in backbone_rules(lower, prefix="model.language_model.")
        if rule.target != "transformer.norm.weight"
    ]
    rules += [
        replace(rule, target=rule.target.replace("transformer.", "speech_layers."))
        for rule in backbone_rules(upper, prefix="model.tts_language_model.")
        if rule.target != "embed_tokens.weight"
    ]
    rules.append(Rule("input_types.weight", ("model.tts_input_types.weight",)))
    for ours, theirs in (("ends.0", "fc1"), ("ends.2", "fc2")):
        rules += [Rule(f"{ours}.{kind}", (f"tts_eos_classifier.{theirs}.{kind}",)) for kind in ("weight", "bias")]
    rules += connector_rules("connector", layout.acoustic_connector, layout)
    rules += head_rules("head", layout.head, found.model.head, layout)
    return rules + half_rules("speech.decoder", f"{layout.acoustic}.decoder", "decoder", found.speech, layout)


def _layers(config: TransformerConfig, number: int) -> TransformerConfig:
    """The config of `number` layers of the backbone; tied embeddings, so that the rules expect no text head."""
    return config.model_copy(update={"num_layers": number, "tied_embeddings": True})
