"""Tiny language models as folders of `transformers`, written by our own exporter: no network, no `transformers`."""

import json
from pathlib import Path

import torch

from latentlm.config import ModelConfig, TransformerConfig
from latentlm.generation.pipeline import Pipeline
from latentlm.interop.hf_llm import save
from latentlm.model.latentlm import LatentLM
from latentlm.tokenizers.text import TextTokenizer

BEGIN, END = 256, 257


def tokenizer_json() -> str:
    """Bytes, and two special tokens."""
    fields = json.loads(TextTokenizer().to_json())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fields["added_tokens"] = [
        {"id": i, "content": content, "special": True} | flags
        for i, content in ((BEGIN, "<|begin|>"), (END, "<|end|>"))
    ]
    return json.dumps(fields)


def write_backbone(folder: Path, *, vocab_size: int = 300, special: dict | None = None, **transformer) -> Path:
    """A random one whose embedding has more rows than its tokenizer entries, as Qwen's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theirs.json").write_text(tokenizer_json())
    special = {"bos": BEGIN, "eos": END} if special is None else special
    text = TextTokenizer.from_backbone(folder / "theirs.json", vocab_size, special)
    (folder / "theirs.json").unlink()
    sizes = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "context_length": 128}
    config = ModelConfig(transformer=TransformerConfig(**sizes | transformer))
    torch.manual_seed(0)
    model = LatentLM(config, text.vocab_size, text.special, {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    save(Pipeline(model, {"text": text}), folder)
    return folder
