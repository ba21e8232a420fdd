"""Quantised weights: refused by name in every layout, by config, by dtype and by the tensors that come with them."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from backbones import write_backbone
from safetensors.torch import load_file, save_file
from test_diffusers_vae_files import write as write_vae
from tiny_unilm import shrink, write_checkpoint

from latentlm.errors import Notice
from latentlm.interop.convert import Conversion, convert, prevailing_dtype

LAYOUTS = ("hf-llm", "vibevoice", "unilm", "diffusers-vae")
QUANTISED = {"quant_method": "bitsandbytes", "load_in_8bit": True}


@pytest.fixture(scope="module")
def vibevoice(tmp_path_factory) -> Path:
    pytest.importorskip("transformers")
    from tiny_vibevoice import build, save

    return save(build(), tmp_path_factory.mktemp("vibevoice"))


@pytest.fixture(params=LAYOUTS)
def checkpoint(request, tmp_path, monkeypatch, vibevoice) -> tuple[Path, str]:
    """A small checkpoint of each layout, and the name of the layout."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    if request.param == "hf-llm":
        write_backbone(folder)
    elif request.param == "vibevoice":
        shutil.copytree(vibevoice, folder, dirs_exist_ok=True)
    elif request.param == "unilm":
        shrink(monkeypatch)
        write_checkpoint(folder)
    else:
        write_vae(folder)
    return folder, request.param


def weights_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def refused(checkpoint, message: str) -> None:
    folder, layout = checkpoint
    with pytest.raises(ValueError, match=message) as error:
        convert(Conversion(str(folder)), folder.parent / "ours", layout)
    assert "\n" not in str(error.value)
    assert not (folder.parent / "ours").exists()


def test_a_config_that_says_so(checkpoint):
    path = checkpoint[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": QUANTISED}))
    refused(checkpoint, r"config.json: quantization_config \(bitsandbytes\): quantised weights are not supported")


def test_a_section_of_a_config_that_says_so(checkpoint):
    path = checkpoint[0] / "config.json"
    fields = json.loads(path.read_text())
    fields["text_config"] = fields.get("text_config", {}) | {"quantization_config": QUANTISED}
    path.write_text(json.dumps(fields))
    refused(checkpoint, r"config.json: text_config.quantization_config \(bitsandbytes\): quantised weights")


def test_an_empty_section_is_no_quantisation(tmp_path):
    write_backbone(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": None}))
    convert(Conversion(str(tmp_path / "theirs")), tmp_path / "ours", "hf-llm")


def test_a_file_beside_the_weights_that_says_so(checkpoint):
    (checkpoint[0] / "quantize_config.json").write_text('{"bits": 4}')
    refused(checkpoint, r"quantize_config.json: quantised weights are not supported")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_that_are_no_plain_floats(checkpoint, dtype):
    path = weights_file(checkpoint[0])
    tensors = {name: t.to(dtype) if t.dim() > 1 else t for name, t in load_file(path).items()}
    save_file(tensors, path)
    refused(
        checkpoint,
        rf"tensors have an unsupported dtype, first \S+ \({str(dtype).removeprefix('torch.')}\): quantised weights",
    )


def test_a_norm_alone_in_fp8(checkpoint):
    path = weights_file(checkpoint[0])
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if tensors[name].dim() == 1 and len(tensors[name]) > 1)
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, path)
    refused(checkpoint, r"1 tensors have an unsupported dtype, first \S+ \(float8_e4m3fn\): quantised weights")


@pytest.mark.parametrize("suffix", ["SCB", "qzeros", "weight_scale", "weight.absmax"])
def test_scales_beside_weights_of_any_dtype(checkpoint, suffix):
    path = weights_file(checkpoint[0])
    save_file(load_file(path) | {f"layer.{suffix}": torch.ones(2)}, path)
    refused(checkpoint, rf"1 tensors with scales of quantised weights, first layer.{suffix}: quantised weights")


def test_pickled_integers(tmp_path):
    write_backbone(tmp_path / "theirs")
    path = weights_file(tmp_path / "theirs")
    torch.save({name: t.to(torch.int8) for name, t in load_file(path).items()}, path.with_name("pytorch_model.bin"))
    path.unlink()
    refused((tmp_path / "theirs", "hf-llm"), r"tensors have an unsupported dtype, first \S+ \(int8\)")


# ------------------------------------------------------------------ checkpoints of several dtypes

CONVERT = "import sys; from latentlm.interop.convert import *; convert(Conversion(sys.argv[1]), sys.argv[2], 'hf-llm')"


def mixed(folder: Path, num_bfloat16: int) -> Path:
    """A backbone whose largest matrices have equal sizes; the first so many tensors are bfloat16, the rest float32."""
    write_backbone(folder, vocab_size=300)
    path = weights_file(folder)
    tensors = {name: t.bfloat16() if i < num_bfloat16 else t for i, (name, t) in enumerate(load_file(path).items())}
    save_file(tensors, path)
    return folder


def test_the_dtype_of_a_conversion_does_not_depend_on_the_hash_seed(tmp_path):
    folder = mixed(tmp_path / "theirs", 9)
    for seed in ("0", "1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", CONVERT, str(folder), str(tmp_path / seed)]
        subprocess.run(command, env=environment, check=True)
    first, *others = ((tmp_path / seed / "model.safetensors").read_bytes() for seed in ("0", "1", "2"))
    assert others == [first, first]


@pytest.mark.parametrize(("num", "dtype"), [(3, torch.float32), (17, torch.bfloat16)])
def test_a_conversion_takes_the_dtype_of_most_values_and_says_so(tmp_path, num, dtype):
    folder = mixed(tmp_path / "theirs", num)
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(Notice, match=rf"mix dtypes \(float32 .* values, bfloat16 .*written in {name}, which most"):
        convert(Conversion(str(folder)), tmp_path / "ours", "hf-llm")
    assert {t.dtype for t in load_file(tmp_path / "ours" / "model.safetensors").values()} == {dtype}


@pytest.mark.parametrize(
    ("dtypes", "chosen"),
    [
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.bfloat16),
        ((torch.float16, torch.float16), torch.float16),
        ((torch.int8, torch.float16), torch.float16),
    ],
)
def test_of_equal_shares_the_wider_dtype_is_taken(tmp_path, dtypes, chosen):
    tensors = {name: torch.zeros(4, dtype=dtype) for name, dtype in zip("ab", dtypes, strict=True)}
    save_file(tensors | {"layer.rotary_emb.inv_freq": torch.zeros(99)}, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        assert prevailing_dtype(tmp_path) is chosen
