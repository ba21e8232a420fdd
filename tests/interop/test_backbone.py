"""Backbones without `transformers`: what is refused, what the new special tokens cost, how a LatentLM holds one."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from backbones import BEGIN, END, write_backbone
from safetensors.torch import load_file, save_file

from latentlm.config import SPECIAL_OFFSET
from latentlm.generation.request import Request
from latentlm.interop.hf_llm import load, read_config, write_fields
from latentlm.types import Document, Text

LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gemma2"}, r"model_type 'gemma2' is not supported \(known: llama, mistral, qwen2, qwen3\)"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu' is"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"model_type": "mistral"}, "sliding_window 4096 is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .*'sliding_attention'.* not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported"),
        ({"hidden_size": "wide"}, "hidden_size 'wide' is not a positive number"),
        ({"rms_norm_eps": "small"}, "norm_eps: .*got 'small'"),
        ({"rope_parameters": LLAMA3 | {"factor": "x"}}, "factor: .*got 'x'"),
    ],
)
def test_what_is_not_supported_is_named_with_its_value(fields, message):
    with pytest.raises(ValueError, match=message):
        read_config(LLAMA | fields)


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "max_position_embeddings"])
def test_a_field_that_is_missing_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_config({key: value for key, value in LLAMA.items() if key != name})


def test_a_folder_names_its_config(tmp_path):
    folder = write_backbone(tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"config.json: hidden_act 'relu'"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json: no such file"):
        load(folder)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"norm_weight": False}, "transformer.norm_weight False has no counterpart"),
        ({"rope_interleaved": True}, "transformer.rope_interleaved True has no counterpart"),
        ({"qkv_bias": True, "qk_norm": True}, "transformer.qkv_bias and transformer.qk_norm together"),
    ],
)
def test_what_no_class_of_theirs_has_is_not_written(option, message):
    with pytest.raises(ValueError, match=message):
        write_fields(read_config(LLAMA).model_copy(update=option), 300)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    folder = write_backbone(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing: model.norm.weight; 1 extra: model.layers.0.self_attn.q_proj.bias"
    ):
        load(folder)


def test_a_second_head_beside_a_tied_one_is_not_dropped_silently(tmp_path):
    folder = write_backbone(tmp_path, tied_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert load(folder)
    save_file(weights | {"lm_head.weight": torch.zeros(300, 32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but lm_head.weight differs"):
        load(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_new_special_tokens_take_less_of_the_probability_than_promised(tmp_path, tied):
    """Whatever the hidden state: 5·e^-10/V, of which the loss moves by as much in nats."""
    model = load(write_backbone(tmp_path, tied_embeddings=tied)).model
    hidden = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 2000)[:, None]
    logits = model.text_logits(hidden).double()
    taken = logits.softmax(-1)[:, 300:].sum(-1)
    assert logits.shape == (2000, 305)
    assert 0 < taken.max() < 5 * math.exp(SPECIAL_OFFSET) / 300
    targets = torch.arange(2000) % 300
    loss, own = (F.cross_entropy(x, targets, reduction="none") for x in (logits, logits[:, :300]))
    assert 0 < (loss - own).max() < 1e-6


def test_special_tokens_are_the_backbones_where_it_has_them(tmp_path):
    text = load(write_backbone(tmp_path)).tokenizers["text"]
    assert (text.special.bos, text.special.eos) == (BEGIN, END)
    assert (text.special.eod, text.special.proceed, text.special.latent) == (300, 301, 302)
    assert text.special.bod == {"image": 303, "speech": 304}
    assert (text.base_size, text.vocab_size, text.text_size) == (300, 305, 300)
    ids = text.encode("<|end|>é")
    assert END not in ids
    assert text.decode([BEGIN, *ids, 299, 303, END]) == "<|end|>é"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"eos": END}, (END, END)), ({}, (300, 301)), ({"bos": BEGIN, "eos": END}, (BEGIN, END))],
    ids=["only eos", "none", "both"],
)
def test_documents_begin_with_what_ends_them_where_nothing_else_does(tmp_path, given, expected):
    folder = write_backbone(tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"bos_token_id": given.get("bos"), "eos_token_id": [given["eos"], 5] if given else None}
    (folder / "config.json").write_text(json.dumps(fields))
    special = load(folder).tokenizers["text"].special
    assert (special.bos, special.eos) == expected


def test_a_text_only_model_generates_and_ends(tmp_path, monkeypatch):
    """Also where one token begins and ends a document."""
    folder = write_backbone(tmp_path)
    pipeline = load(folder)
    assert isinstance(pipeline.generate("ab", "text", max_tokens=5)[0], str)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"bos_token_id": END}))
    pipeline = load(folder)
    monkeypatch.setattr(pipeline.model, "text_logits", lambda hidden: F.one_hot(torch.tensor([END]), 305).float())
    request = Request(Document((Text("ab", condition=True, loss=False),)), "text", max_tokens=5)
    assert pipeline.generate_batch([request])[0].finish_reason == "stop"
