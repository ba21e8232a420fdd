"""`latentlm convert`: what comes out loads, what fails leaves nothing behind, and how much memory it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from test_diffusers_vae_files import write as write_vae

import latentlm
from latentlm import cli
from latentlm.interop.convert import Conversion, convert
from latentlm.tokenizers import load_tokenizer
from latentlm.tokenizers.text import TextTokenizer

MEGABYTE = 2**20


def write_llama(folder, *, shard_size: str = "5GB", **options) -> None:
    """A random Llama of transformers whose vocabulary are the bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = TextTokenizer()
    config = LlamaConfig(**size | options, vocab_size=258, bos_token_id=256, eos_token_id=257)
    LlamaForCausalLM(config).to(config.dtype).save_pretrained(folder, max_shard_size=shard_size)
    (folder / "tokenizer.json").write_text(text.to_json())


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_there_and_back(tmp_path, tied):
    write_llama(tmp_path / "llama", tie_word_embeddings=tied)
    convert(Conversion(str(tmp_path / "llama")), tmp_path / "ours", "hf-llm")
    pipeline = latentlm.load(tmp_path / "ours")
    assert pipeline.generate("ab", to="text", max_tokens=3) == latentlm.load(tmp_path / "ours").generate(
        "ab", to="text", max_tokens=3
    )
    convert(Conversion(str(tmp_path / "ours")), tmp_path / "back", "latentlm", "hf-llm")
    convert(Conversion(str(tmp_path / "llama"), shard_size=20_000), tmp_path / "again", "hf-llm", "hf-llm")
    original = load_file(tmp_path / "llama" / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    shards = sorted((tmp_path / "again").glob("model-*.safetensors"))
    assert len(shards) > 2
    again = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for found in (back, again):
        assert found.keys() == original.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in original.items())


def test_the_type_of_the_weights_is_kept(tmp_path):
    write_llama(tmp_path / "llama", dtype=torch.bfloat16)
    convert(Conversion(str(tmp_path / "llama")), tmp_path / "ours", "hf-llm")
    assert {t.dtype for t in load_file(tmp_path / "ours" / "model.safetensors").values()} == {torch.bfloat16}


def test_an_image_tokenizer_with_its_calibration(tmp_path, capsys):
    (tmp_path / "vae").mkdir()
    write_vae(tmp_path / "vae")
    cli.main(["convert", str(tmp_path / "vae"), str(tmp_path / "raw"), "--from", "diffusers-vae"])
    assert "not calibrated yet" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "raw").latent_std.isnan()
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 200)).save(tmp_path / f"{number}.png")
    lines = [{"segments": [{"image": f"{number}.png"}]} for number in range(4)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--from", "diffusers-vae", "--image-size", "16", "--calibrate", str(tmp_path / "mine.jsonl")]
    cli.main(["convert", str(tmp_path / "vae"), str(tmp_path / "ready"), *arguments])
    tokenizer = load_tokenizer(tmp_path / "ready")
    assert tokenizer.num_latents == 64
    latents = torch.cat([item.mean for item in tokenizer.encode([Image.open(tmp_path / f"{i}.png") for i in range(4)])])
    torch.testing.assert_close(latents.std(correction=0), torch.tensor(1.0))


def test_a_target_that_exists_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there: exists already"):
        convert(Conversion("anything"), tmp_path / "there", "hf-llm")


@pytest.mark.parametrize("format", ["hf-llm", "unilm", "diffusers-vae", "latentlm"])
def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch, format):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    to = "hf-llm" if format == "latentlm" else "latentlm"
    with pytest.raises(ValueError, match=r"someone/model: neither a folder here nor reachable on the hub .*download"):
        convert(Conversion("someone/model"), tmp_path / "out", format, to)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_counted_and_nothing_is_left(tmp_path):
    write_llama(tmp_path / "llama")
    path = tmp_path / "llama" / "model.safetensors"
    tensors = load_file(path)
    missing = [name for name in tensors if "self_attn" in name or "mlp" in name]
    tensors = {name: t for name, t in tensors.items() if name not in missing} | {
        f"extra.{i:02d}": torch.zeros(1) for i in range(12)
    }
    tensors["lm_head.weight"] = torch.zeros(3, 32)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"14 missing: .*; 12 extra: .*; 1 misshaped: ") as error:
        convert(Conversion(str(tmp_path / "llama")), tmp_path / "out", "hf-llm")
    message = str(error.value)
    assert "\n" not in message
    assert sum(name in message for name in missing) == 10
    assert "extra.09" in message
    assert "extra.10" not in message
    assert "lm_head.weight (3, 32) instead of (258, 32)" in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["llama"]


@pytest.mark.parametrize(
    ("format", "to", "options", "message"),
    [
        ("unilm", "hf-llm", {}, "--from unilm --to hf-llm is not possible; known: hf-llm to latentlm, "),
        ("hf-llm", "latentlm", {"image_size": 64}, "--image-size is for --from diffusers-vae, not for hf-llm"),
        ("unilm", "latentlm", {"calibrate": "emoji"}, "--calibrate is for --from diffusers-vae, not for unilm"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, format, to, options, message):
    with pytest.raises(ValueError, match=message):
        convert(Conversion(str(tmp_path), **options), tmp_path / "out", format, to)


MEASURE = """
import sys
from latentlm.interop.convert import Conversion, convert
convert(Conversion(sys.argv[1], shard_size=25 * 2**20), sys.argv[2], "hf-llm", sys.argv[3])
(line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""
"""Peak memory. Not getrusage's ru_maxrss: that keeps the peak of the process that started this one, pytest's."""


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    write_llama(folder / "small")
    write_llama(folder / "large", hidden_size=512, intermediate_size=2048, num_hidden_layers=6, shard_size="25MB")
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux says there how much memory was used")
@pytest.mark.parametrize("to", ["latentlm", "hf-llm"])
def test_memory_is_the_model_and_less_than_a_third_more_than_a_shard(two_sizes, tmp_path, to, margin):
    """Beyond what torch and the conversion of a model of a few kilobytes take in the same way."""

    def peak(name: str) -> int:
        command = [sys.executable, "-W", "ignore", "-c", MEASURE, two_sizes / name, tmp_path / f"{name}-out", to]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    shards = [path.stat().st_size for path in (two_sizes / "large").glob("model-*.safetensors")]
    assert len(shards) >= 4
    assert sum(shards) > 90 * MEGABYTE
    used = peak("large") - peak("small")
    margin("shards beyond the model", (used - sum(shards)) / max(shards), at_most=1.3)
    margin("bytes over those of the model", used / sum(shards), at_least=0.9)
