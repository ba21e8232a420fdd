"""Rules both ways: what fits is copied, what does not is listed and counted, what is shared stays shared."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentlm.interop.checkpoint_files import CheckpointFiles
from latentlm.interop.mapping import Rule, export, fill


class Toy(nn.Module):
    def __init__(self, depth: int = 1):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.qkv = nn.ModuleList(nn.Linear(4, 8) for _ in range(depth))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(()))


def rules(depth: int = 1) -> list[Rule]:
    qkv = [
        Rule(f"qkv.{i}.{kind}", tuple(f"layers.{i}.{x}.{kind}" for x in "qkv"), "cat", (4, 2, 2))
        for i in range(depth)
        for kind in ("weight", "bias")
    ]
    return [Rule("embed.weight", ("tokens",)), *qkv]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    toy = Toy()
    export(toy, rules(), tmp_path, keep=["scale"])
    return tmp_path


def test_there_and_back_from_the_meta_device(folder):
    with torch.device("meta"):
        toy = Toy()
    toy.scale = torch.ones(())
    fill(toy, CheckpointFiles.open(folder), rules(), keep=["scale"])
    torch.manual_seed(0)
    for name, tensor in Toy().state_dict().items():
        assert torch.equal(toy.state_dict()[name], tensor), name
    assert toy.head.weight is toy.embed.weight
    assert isinstance(toy.head.weight, nn.Parameter)


def test_their_tensors_are_the_parts_in_order(folder):
    theirs = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    weight = Toy().qkv[0].weight
    assert torch.equal(theirs["layers.0.k.weight"], weight[4:6])
    assert torch.equal(theirs["layers.0.v.weight"], weight[6:])
    assert set(theirs) == {"tokens", *(f"layers.0.{x}.{kind}" for x in "qkv" for kind in ("weight", "bias"))}


def test_values_are_cast_to_the_modules_dtype(folder):
    toy = Toy().bfloat16()
    fill(toy, CheckpointFiles.open(folder), rules(), keep=["scale"])
    assert toy.embed.weight.dtype == torch.bfloat16
    assert torch.equal(toy.embed.weight, load_file(folder / "model.safetensors")["tokens"].bfloat16())


def test_ten_of_each_kind_and_how_many(tmp_path):
    export(Toy(12), rules(12), tmp_path, keep=["scale"])
    theirs = load_file(tmp_path / "model.safetensors")
    for i in range(12):
        del theirs[f"layers.{i}.q.weight"]
        theirs[f"stranger.{i:02d}"] = torch.zeros(1)
    theirs["layers.0.k.weight"] = torch.zeros(3, 4)
    save_file(theirs, tmp_path / "model.safetensors")
    toy = Toy(12)
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        fill(toy, CheckpointFiles.open(tmp_path), rules(12), keep=["scale"])
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("q.weight") == 10
    assert "12 missing: layers.0.q.weight, " in message
    assert "12 extra: stranger.00, " in message
    assert "stranger.10" not in message
    assert "1 misshaped: layers.0.k.weight (3, 4) instead of (2, 4)" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in toy.state_dict().items())


def test_what_is_to_be_ignored_is_named_by_pattern(folder):
    theirs = load_file(folder / "model.safetensors")
    save_file(theirs | {"layers.0.rotary.inv_freq": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 extra: layers.0.rotary.inv_freq"):
        fill(Toy(), CheckpointFiles.open(folder), rules(), keep=["scale"])
    fill(Toy(), CheckpointFiles.open(folder), rules(), keep=["scale"], ignore=["*.inv_freq"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (rules()[:-1], "no rule fills"),
        ([*rules(), Rule("head.weight", ("lm_head",))], "two rules fill the same tensor"),
        ([*rules(), Rule("nothing", ("x",))], "the module does not have"),
    ],
)
def test_rules_must_fill_everything_once(folder, wrong, message):
    with pytest.raises(AssertionError, match=message):
        fill(Toy(), CheckpointFiles.open(folder), wrong, keep=["scale"])


def test_shards_and_their_index(tmp_path):
    toy = Toy(3)
    export(toy, [*rules(3), Rule("scale", ("scale",))], tmp_path, shard_size=200)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert files == {path.name for path in tmp_path.glob("*.safetensors")}
    assert all(len(load_file(tmp_path / file)) == list(index["weight_map"].values()).count(file) for file in files)
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in toy.parameters()) + 4
    other = Toy(3)
    fill(other, CheckpointFiles.open(tmp_path), [*rules(3), Rule("scale", ("scale",))])
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in toy.state_dict().items())


def test_a_buffer_that_no_file_holds_is_not_left_unfilled(folder):
    with torch.device("meta"):
        toy = Toy()
        toy.register_buffer("table", torch.ones(2), persistent=False)
    toy.scale = torch.ones(())
    with pytest.raises(AssertionError, match="no file holds table"):
        fill(toy, CheckpointFiles.open(folder), rules(), keep=["scale"])


MEASURE = """
import sys, torch
from torch import nn
from latentlm.interop.mapping import Rule, fill
from latentlm.interop.checkpoint_files import CheckpointFiles
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(1024, 2048, bias=False) for _ in range(12)))
before = peak()
fill(model, CheckpointFiles.open(sys.argv[1]), [Rule(f"{i}.weight", (f"a{i}", f"b{i}"), "cat") for i in range(12)])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says in /proc how much memory was used")
def test_memory_is_the_model_and_less_than_one_more_shard(tmp_path, margin):
    """Twelve matrices of 8 MiB in three shards of 32 MiB: 1.3 shards above the model would be allowed."""
    model = nn.Sequential(*(nn.Linear(1024, 2048, bias=False) for _ in range(12)))
    rules = [Rule(f"{i}.weight", (f"a{i}", f"b{i}"), "cat") for i in range(12)]
    export(model, rules, tmp_path, shard_size=2**25)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    # not by getrusage: its ru_maxrss keeps the peak of the process that started this one, pytest's
    megabytes = int(done.stdout) / 1024
    margin("shards beyond the model", (megabytes - 96) / 32, at_most=1.3)
    margin("bytes over those of the model", megabytes / 96, at_least=0.9)
