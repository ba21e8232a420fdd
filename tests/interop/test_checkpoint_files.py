"""Checkpoint files of other projects: found, opened lazily, and named when something is wrong with them."""

import json
import random
from argparse import Namespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from latentlm.errors import UserError
from latentlm.interop.checkpoint_files import CheckpointFiles, locate

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(4, dtype=torch.bfloat16), "d": torch.zeros(())}


def write_shards(folder):
    save_file({"a": TENSORS["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({k: TENSORS[k] for k in ("b.c", "d")}, folder / "model-00002-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors"} | dict.fromkeys(("b.c", "d"), "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def check(source):
    assert source.names == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert torch.equal(source.read(name), tensor)
        assert source.read(name).dtype == tensor.dtype


def test_a_file_a_folder_and_shards_with_and_without_their_index(tmp_path):
    save_file(TENSORS, tmp_path / "other.safetensors")
    check(CheckpointFiles.open(tmp_path / "other.safetensors"))
    check(CheckpointFiles.open(tmp_path))
    write_shards(tmp_path)
    check(CheckpointFiles.open(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    check(CheckpointFiles.open(tmp_path))


def test_the_config_beside_the_weights(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert CheckpointFiles.open(tmp_path).config == {}
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert CheckpointFiles.open(tmp_path).config == {"model_type": "x"}
    assert CheckpointFiles.open(tmp_path / "model.safetensors").config == {"model_type": "x"}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config.json: not a JSON object"):
        CheckpointFiles.open(tmp_path)


def test_shards_that_are_not_there_are_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="1 of 2 shards are not here: model-00002-of-00002"):
        CheckpointFiles.open(tmp_path)


@pytest.mark.parametrize("file", [5, None, ["a"], "../model.safetensors", ""])
def test_a_weight_map_that_names_no_file_is_refused(tmp_path, file):
    write_shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    fields = json.loads(path.read_text())
    fields["weight_map"]["b.c"] = file
    path.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"index.json: weight_map.b.c is .*, expected the name of a file in"):
        CheckpointFiles.open(tmp_path)


def test_a_name_in_two_shards_is_refused(tmp_path):
    write_shards(tmp_path)
    save_file({"a": TENSORS["a"], "d": TENSORS["d"]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors: d is in model-00001"):
        CheckpointFiles.open(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "checkpoint.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_read_by_weights_only_and_said(tmp_path, caplog, name, zipped):
    tree = {"a": TENSORS["a"], "b": {"c": TENSORS["b.c"]}, "d": TENSORS["d"], "epoch": 3, "args": Namespace(lr=1.0)}
    torch.save(tree, tmp_path / name, _use_new_zipfile_serialization=zipped)
    check(CheckpointFiles.open(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / name}: pickled weights, read with weights_only (tensors and plain containers, no code)"
    ]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_file_that_is_cut_off_is_one_line(tmp_path, share, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"pytorch_model.bin: (the file is empty|.*(cut off|EOF|range))") as error:
        CheckpointFiles.open(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_that_are_no_pickle_are_one_line(tmp_path):
    generator = random.Random(0)
    for _ in range(200):
        (tmp_path / "model.pt").write_bytes(generator.randbytes(generator.randrange(1, 60)))
        with pytest.raises(UserError, match=r"model\.pt: "):
            CheckpointFiles.open(tmp_path)


class Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"a": Payload()}, tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"model.pt: cannot be read with weights_only \(Unsupported .*print"
    ) as refused:
        CheckpointFiles.open(tmp_path)
    assert "two options" not in str(refused.value), "torch's advice to switch the check off is not passed on"
    assert "executed" not in capsys.readouterr().out


def test_safetensors_come_before_pickles(tmp_path, caplog):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")
    check(CheckpointFiles.open(tmp_path))
    assert not caplog.records


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"weights here: none"):
        CheckpointFiles.open(tmp_path)
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(ValueError, match=r"not a weights file \(known: .safetensors"):
        CheckpointFiles.open(tmp_path / "weights.txt")
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"model.safetensors: not a readable safetensors file"):
        CheckpointFiles.open(tmp_path)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: holds a list"):
        CheckpointFiles.open(tmp_path / "list.pt")


def test_locate_takes_what_is_here(tmp_path):
    assert locate(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="no such file or folder, and not a hub id"):
        locate(tmp_path / "absent")


def test_a_hub_id_without_a_hub_says_what_to_put_where(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    message = (
        r"owner/name: neither a folder here .* download its files \(\*.json, .*safetensors\) elsewhere, put them into"
    )
    with pytest.raises(ValueError, match=message):
        locate("owner/name")


def test_pickles_of_a_hub_repository_are_fetched_only_where_nothing_else_is(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(allow_patterns) or str(tmp_path)
    )
    locate("owner/name")
    assert ["*.bin" in patterns for patterns in asked] == [False, True]
    (tmp_path / "model.safetensors").touch()
    asked.clear()
    locate("owner/name")
    assert ["*.bin" in patterns for patterns in asked] == [False]
