"""The header of a weights file: a note that is found again, and the same bytes whoever writes them."""

import subprocess
import sys

import pytest
import torch

from latentlm.weights import read_note, read_weights, save_weights


def test_a_note_is_kept_beside_the_tensors(tmp_path):
    save_weights(tmp_path / "plain.safetensors", {"a": torch.ones(2)})
    save_weights(tmp_path / "noted.safetensors", {"a": torch.ones(2)}, note="of a kind")
    assert read_note(tmp_path / "plain.safetensors") is None
    assert read_note(tmp_path / "noted.safetensors") == "of a kind"
    assert torch.equal(read_weights(tmp_path / "noted.safetensors")["a"], torch.ones(2))


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """Written ten times here, and in another process: maps of several entries come in any order."""
    tensors = {name: torch.arange(3.0) for name in ("b", "a", "c")}
    paths = [tmp_path / f"{number}.safetensors" for number in range(10)]
    for path in paths:
        save_weights(path, tensors, note="start")
    code = "import sys, torch; from latentlm.weights import save_weights; "
    code += "save_weights(sys.argv[1], {name: torch.arange(3.0) for name in 'bac'}, note='start')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other.safetensors")], check=True)
    assert len({path.read_bytes() for path in [*paths, tmp_path / "other.safetensors"]}) == 1


def test_a_full_disk_is_an_error_that_names_the_file_and_changes_nothing(tmp_path, full_disk):
    path = tmp_path / "model.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        save_weights(path, {"a": torch.ones(1000)})
    assert error.value.filename == str(path)
    assert torch.equal(read_weights(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]
