"""The header of a run and --dry-run: figures that agree with what is trained, and nothing written or changed."""

import json
from itertools import takewhile

import pytest
import torch
from tiny_run import real_model
from torch import nn

from latentlm import cli
from latentlm.config import TrainingConfig, load_recipe
from latentlm.data.packing import DocumentEncoder
from latentlm.errors import UserError
from latentlm.modalities.image import Image
from latentlm.tokenizers.text import TextTokenizer
from latentlm.training import run as module
from latentlm.training.distributed import World
from latentlm.training.latentlm import build_latentlm, document_loader
from latentlm.training.logs import read_log
from latentlm.training.objective import Run
from latentlm.training.outline import count_parameters, memory, outline
from latentlm.training.run import preview, train
from latentlm.training.tokenizer import build_tokenizer
from latentlm.training.workload import kept_bytes, latentlm_workload, layout, tokenizer_workload
from latentlm.types import Document, Latents, Text

SMALL = {
    "data.sources": [
        {"name": "digits", "task": "text_to_image", "limit": 40, "weight": 3},
        {"name": "shapes", "task": "text", "limit": 10},
    ],
    "data.rows": 2,
    "data.sequence_length": 64,
    "tokenizers.speech": None,
    "model.transformer": {"width": 32, "num_layers": 2, "num_heads": 2},
    "model.head": {"num_layers": 1},
    "model.heads": {},
    "training.steps": 2,
    "training.max_minutes": None,
    "training.precision": "fp32",
    "training.sample_every": None,
    "training.log_every": 1,
}
"""The demo, small."""


def test_a_dry_run_shows_what_a_run_has_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    cli.main(["train", "demo", "--dry-run", "--threads", "1", *settings])
    shown = capsys.readouterr().out.splitlines()
    assert list(tmp_path.iterdir()) == []
    assert shown[:2] == ["latentlm on cpu, fp32", "threads     1"]
    assert all(len(line) <= 80 or line.startswith(("data", "            ")) for line in shown)
    text = "\n".join(shown)
    assert "digits (text_to_image): 40 documents, about 320 tokens per epoch, 75.0% of draws" in text
    assert "shapes (text): 10 documents, " in text
    assert "step        256 positions (2 × 2 rows of 64), " in text
    assert 'example:    <BOS> "zero"' in text
    assert "<BOD:image> 4 latents <EOD>" in text

    train(load_recipe("demo", SMALL), tmp_path / "run")
    header = capsys.readouterr().err.splitlines()
    assert header[0] == f"{tmp_path / 'run'}: training latentlm on cpu, fp32"
    body = [line for line in header[1:] if not line.startswith("encoded media are kept in ")]
    body = list(takewhile(lambda line: not line.startswith("step 1"), body))
    assert body == shown[1 : 1 + len(body)]
    assert len(body) > 6


def test_the_header_says_the_threads_that_the_size_of_the_model_leaves(tmp_path, monkeypatch, capsys):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr("latentlm.hardware.num_cores", lambda: 2)
    try:
        assert preview(load_recipe("demo", SMALL))[1] == "threads     1"
        train(load_recipe("demo", SMALL), tmp_path / "run")
        assert "threads     1" in capsys.readouterr().err.splitlines()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["tiny_image", "tiny_speech"])
def test_a_tokenizer_s_dry_run(name, tmp_path, monkeypatch):
    if name == "tiny_speech":
        pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    changes = {"data.sources": [{"name": "digits", "limit": 50}]} if name == "tiny_image" else {}
    lines = preview(load_recipe(name, changes | {"data.batch_size": 4, "training.global_micro_batches": 2}))
    text = "\n".join(lines)
    assert list(tmp_path.iterdir()) == []
    assert ("digits: 50 pictures" if name == "tiny_image" else "clips of 0.96 s (2 × 4)") in text
    assert "step        8 " in text
    assert "FLOPs: 3 × the forward pass" in text


def test_a_kind_without_a_preview_says_so(monkeypatch):
    recipe = load_recipe("tiny_image")
    without = module.KINDS["image_tokenizer"].__class__(**vars(module.KINDS["image_tokenizer"]) | {"preview": None})
    monkeypatch.setitem(module.KINDS, "image_tokenizer", without)
    with pytest.raises(UserError, match="a recipe of kind image_tokenizer has no --dry-run"):
        preview(recipe)


def test_missing_data_are_named_by_a_dry_run():
    with pytest.raises(UserError, match=r"none\.jsonl: no such manifest"):
        preview(load_recipe("demo", SMALL | {"data.sources": [{"manifest": "none.jsonl"}]}))


def test_the_header_changes_no_loss(tmp_path, monkeypatch):
    small = load_recipe("tiny_image", {"training.steps": 2, "training.log_every": 1, "data.batch_size": 4})
    train(small, tmp_path / "with")
    spec = module.KINDS["image_tokenizer"]
    monkeypatch.setitem(module.KINDS, "image_tokenizer", spec.__class__(**vars(spec) | {"workload": None}))
    train(small, tmp_path / "without")
    losses = [[line["losses"] for line in read_log(tmp_path / name / "train.jsonl")] for name in ("with", "without")]
    assert losses[0] == losses[1]


def test_parameters_are_counted_once_and_by_part():
    model = real_model()
    counts = count_parameters(model)
    assert sum(counts.values()) == sum(value.numel() for value in model.parameters())
    assert {"transformer", "head image", "head speech", "embed_tokens", "text_head"} <= set(counts)
    model.text_head.weight = model.embed_tokens.weight
    assert "text_head" not in count_parameters(model)


def test_memory_follows_what_is_trained():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    model[0].requires_grad_(False)
    config = TrainingConfig(ema=0.9)
    expected = {"weights": 800, "gradients": 400, "optimiser": 800, "average": 400, "activations": 7}
    assert memory(Run(model=model), config, "fp32", 7) == expected
    assert memory(Run(model=model), config, "bf16", 7)["weights"] == 800 + 2 * 200
    assert memory(Run(model=model), TrainingConfig(ema=0), "fp32", None)["average"] == 0
    assert any("100 trained" in line for line in outline(Run(model=model), config, World(), None))


def test_activations_of_a_language_model_are_near_what_a_forward_pass_keeps(tmp_path):
    """Within a fifth; the rule is 4/3 of the inputs and outputs of the linear layers."""
    recipe = load_recipe("demo", SMALL | {"model.transformer.width": 128, "data.rows": 4})
    run = build_latentlm(recipe, tmp_path, World())
    work = latentlm_workload(recipe, run, World())
    kept = kept_bytes(run.model, document_loader(recipe, run, World()).next_step()[0])
    assert work.activations == pytest.approx(kept, rel=0.2)


def test_flops_of_a_tokenizer_are_those_of_its_linear_layers(tmp_path):
    recipe = load_recipe("tiny_image", {"data.batch_size": 3})
    run = build_tokenizer(recipe, tmp_path, World())
    work = tokenizer_workload(recipe, run, World())
    weights = sum(layer.weight.numel() for layer in run.model.modules() if isinstance(layer, nn.Linear))
    assert work.flops == pytest.approx(6 * weights * 4 * 3, rel=0.1)  # 4 patches a picture


def test_the_layout_names_tokens_and_latents():
    text = TextTokenizer()
    latents = Latents(torch.zeros(4, 2), torch.tensor(0.5), "sigma")
    document = Document((Text("red apple", condition=True, loss=False), Image(latents), Text("x" * 99)))
    shown = layout(DocumentEncoder(text)(document), text)
    assert shown == f'<BOS> "red apple" (9 tokens) <BOD:image> 4 latents <EOD> "{"x" * 59}…" (99 tokens)'
