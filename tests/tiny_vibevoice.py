"""A tiny VibeVoice of `transformers` with weights that let every path show, and the folder it was saved in."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Qwen2Config,
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerEncoderConfig,
    VibeVoiceConfig,
    VibeVoiceForConditionalGeneration,
)

SHAPE = {"num_filters": 4, "downsampling_ratios": [2, 2, 5], "depths": [1, 2, 1, 2]}
HOP = 20
LATENT, FEATURES, WIDTH, VOCABULARY = 6, 9, 32, 300
EOS, START, END, GO_ON = 290, 291, 292, 293


def build(
    *, tied: bool = False, vae_std: float = 0.0, go_on: float = 0.45, gain: float = 1.0
) -> VibeVoiceForConditionalGeneration:
    """Random, but steered: it speaks the longer the larger `go_on`, then ends its span, and the document after it.

    gain: of the diffusion head's matrices. At 1 a rounding error grows tenfold in a dozen frames of feedback, in their
    model as in ours.
    """
    text = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=tied,
    )
    config = VibeVoiceConfig(
        audio_config=VibeVoiceAcousticTokenizerConfig(hidden_size=LATENT, vae_std=vae_std, **SHAPE),
        semantic_model_config=VibeVoiceAcousticTokenizerEncoderConfig(hidden_size=FEATURES, **SHAPE),
        text_config=text,
        diffusion_head_config={"intermediate_size": 96, "num_hidden_layers": 3},
        pad_token_id=EOS,
        eos_token_id=EOS,
        audio_bos_token_id=START,
        audio_eos_token_id=END,
        audio_token_id=GO_ON,
    )
    model = VibeVoiceForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            randomise(name, parameter, generator)
            if "diffusion_head" in name and parameter.dim() > 1:
                parameter *= gain
        model.model.latent_scaling_factor.fill_(0.7)
        model.model.latent_bias_factor.fill_(-0.2)
        if not tied:
            steer(model, go_on)
    return model


def randomise(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if "norm" in name or name.endswith("act.weight"):
        parameter.normal_(1.0, 0.2, generator=generator)
    elif parameter.dim() == 1:
        parameter.normal_(0.0, 0.3, generator=generator)
    elif parameter.dim() > 1:
        fan_in = parameter[0].numel()
        parameter.normal_(0.0, fan_in**-0.5, generator=generator)


def steer(model: VibeVoiceForConditionalGeneration, go_on: float) -> None:
    """Latents and <start> point along one axis, <end> along another. The text head reads going on from the first and
    the end of the document from the second; the end of a span is left to chance."""
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    embedding[END, 1] += 30
    embedding[START, 0] += 6
    model.model.multi_modal_projector.linear_2.bias[0] += 6
    head[[EOS, START]] = 0.0
    head[EOS, 1] = 0.5
    head[[EOS, START], 0] = -1.0
    head[[END, GO_ON]] *= 0.5
    head[GO_ON, 0] += go_on


def tokenizer_file(folder: Path) -> None:
    """A byte-level tokenizer whose ids are the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))


def save(model: VibeVoiceForConditionalGeneration, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer_file(folder)
    return folder
