"""Backbones against the classes of transformers: logits whole and cached, both directions, and the real key lists.

Weights are random: matrices of std 0.5/√fan_in, norm weights and biases too. Larger ones make attention so sharp that
bf16 alone moves logits by 2% of the largest, in their model and in ours alike, measured against fp32.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from latentlm.config import ModelConfig
from latentlm.data.packing import DocumentEncoder, pack
from latentlm.generation.pipeline import Pipeline
from latentlm.interop.checkpoint_files import CheckpointFiles
from latentlm.interop.hf_llm import HEAD, load, read_config, rules, save
from latentlm.interop.mapping import check
from latentlm.model.latentlm import LatentLM
from latentlm.tokenizers.text import SpecialTokens, TextTokenizer
from latentlm.types import IGNORE, Document, PackedBatch, Text

V, T = 300, 48
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = {
    "Llama": ("Llama", {"head_dim": 12}),
    "Llama 3, slowed RoPE": (
        "Llama",
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}, "tie_word_embeddings": True},
    ),
    "Qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "Qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {"sliding_window": None}),
}
SIZES = {
    "vocab_size": V,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}


def reference(name: str, **extra) -> torch.nn.Module:
    """A random model of the real class in eval mode."""
    kind, fields = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**SIZES | fields | extra)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 0.5 * parameter.shape[-1] ** -0.5)
            if parameter_name.endswith("norm.weight"):
                parameter += 1
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """Bytes, and the two special tokens that these models have."""
    backend = TextTokenizer()._backend
    backend.add_special_tokens(["<|begin|>", "<|end|>"])
    (folder / "tokenizer.json").write_text(backend.to_str())


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[str, Path, torch.nn.Module, Pipeline]:
    theirs = reference(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    write_tokenizer(folder)
    return request.param, folder, theirs, load(folder)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))


def whole(model: LatentLM, ids: Tensor) -> Tensor:
    """Logits (B, T, V) in one pass, as in training."""
    B, T = ids.shape
    nothing, nowhere = torch.full_like(ids, IGNORE), torch.full_like(ids, -1)
    batch = PackedBatch(ids, torch.arange(T).expand(B, T), torch.zeros_like(ids), nowhere, nothing, nothing, {})
    return model.text_logits(model.hidden(batch))[..., :V]


def cached(model: LatentLM, ids: Tensor, prompt: int) -> Tensor:
    """The same from a prefill of `prompt` positions and one pass for each that follows."""
    cache = model.transformer.new_cache(len(ids), ids.shape[1])
    parts = []
    for piece in ids.split([prompt] + [1] * (ids.shape[1] - prompt), dim=1):
        hidden = model.transformer.extend(model.embed_tokens(piece), cache.open(piece.shape[1]))
        parts.append(model.text_logits(hidden)[..., :V])
        cache.lengths = [length + piece.shape[1] for length in cache.lengths]
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def test_logits_whole_and_cached(case, ids, agree):
    name, _, theirs, ours = case
    expected = theirs(ids).logits
    assert expected.std() > 0.3
    agree(f"hf_llm: {name}, logits", whole(ours.model, ids), expected, 1e-4)
    agree(f"hf_llm: {name}, cached logits", cached(ours.model, ids, prompt=20), expected, 1e-4)


@torch.inference_mode()
def test_logits_in_bf16(case, ids, agree):
    name, folder, _, _ = case
    theirs = type(case[2]).from_pretrained(folder, dtype=torch.bfloat16).eval()
    ours = load(folder, dtype=torch.bfloat16).model
    agree(f"hf_llm: {name}, bf16", whole(ours, ids), theirs(ids).logits.float(), 2e-2, relative=True)


@torch.inference_mode()
def test_the_text_loss_of_a_document(case, agree):
    """Theirs over V tokens, ours over V + 5: what the new special tokens take is within the tolerance."""
    name, _, theirs, ours = case
    encoder = DocumentEncoder(ours.tokenizers["text"])
    document = encoder(Document((Text("Plain text, as it was before.\n"),)))
    batch = pack([document], {})
    loss = ours.model(batch, torch.Generator())["text"] / batch.target_counts()["text"]
    expected = theirs(torch.tensor([[*document.ids, 257]]), labels=torch.tensor([[*document.ids, 257]])).loss
    agree(f"hf_llm: {name}, text loss", loss, expected, 1e-5)


@torch.inference_mode()
def test_an_exported_model_is_theirs_again(case, ids, tmp_path, agree):
    name, _, theirs, ours = case
    save(ours, tmp_path, shard_size=100_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    back, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for key in ("rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id"):
        assert getattr(back.config, key) == getattr(theirs.config, key), key
    agree(f"hf_llm: {name}, exported", back.eval()(ids).logits, theirs(ids).logits, 1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("Ab é", add_special_tokens=False) == ours.tokenizers["text"].encode("Ab é")
    again = load(tmp_path)
    assert all(torch.equal(value, again.model.state_dict()[k]) for k, value in ours.model.state_dict().items())


REAL = {
    "Llama-3.2-1B": {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Qwen2.5-1.5B": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
}
PARAMETERS = {"Llama-3.2-1B": 1236, "Qwen2.5-1.5B": 1544, "Qwen2.5-7B": 7616, "Qwen3-0.6B": 596, "SmolLM2-135M": 134.5}
"""Millions, as the model cards have them."""


@pytest.mark.parametrize("name", REAL)
def test_every_key_of_the_real_configurations_is_mapped(name):
    """Names and shapes on the meta device: none left on either side, and the file names what the class names."""
    fields = REAL[name]
    config = transformers.AutoConfig.for_model(**fields)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
        ours = LatentLM(
            ModelConfig(transformer=read_config(fields)),
            fields["vocab_size"],
            SpecialTokens.after(fields["vocab_size"]),
            {},
        )
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    if fields["tie_word_embeddings"]:
        assert shapes.pop(HEAD) == shapes["model.embed_tokens.weight"]  # listed twice, saved once
    assert theirs.get_output_embeddings().weight.shape[0] == fields["vocab_size"]
    check(ours, CheckpointFiles(Path(name), fields, shapes), rules(ours.config.transformer))
    assert sum(value.numel() for value in ours.parameters()) == sum(value.numel() for value in theirs.parameters())
    assert sum(value.numel() for value in ours.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], rel=2e-3)


@pytest.mark.parametrize("name", REAL)
def test_configurations_of_4_and_5_read_alike(name):
    fields = REAL[name]
    saved = json.loads(transformers.AutoConfig.for_model(**fields).to_json_string(use_diff=False))
    assert "rope_parameters" in saved
    assert "rope_theta" not in saved
    assert read_config(saved) == read_config(fields)
