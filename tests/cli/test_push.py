"""`latentlm push` and `load` of what was pushed, through a stand-in for the hub, in processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import TOKEN, Hub, running

from latentlm.checkpoint import write_config
from latentlm.weights import save_weights

LOAD = """
import sys
import latentlm
latentlm.load(sys.argv[1]).save(sys.argv[2])
"""


@pytest.fixture
def hub():
    with running() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path, model, tokenizers) -> Path:
    """A model with an average, whose card its author has not written."""
    folder = tmp_path / "mine"
    source = {"name": "digits", "task": "text_to_image"}
    recipe = {"kind": "latentlm", "description": "digits, drawn", "data": {"sources": [source]}}
    write_config(folder, model, tokenizers, {"recipe": recipe, "step": 1200})
    save_weights(folder / "model.safetensors", {name: 2 * value for name, value in model.state_dict().items()})
    save_weights(folder / "ema.safetensors", model.state_dict())
    return folder


def run(hub: Hub, cache: Path, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": ":".join(sys.path)} | ({} if token is None else {"HF_TOKEN": token})
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=cache)


def push(hub: Hub, cache: Path, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    return run(hub, cache, "-m", "latentlm", "push", *arguments, token=token)


def test_what_was_pushed_is_loaded_to_the_byte(hub, folder, tmp_path):
    done = push(hub, tmp_path, str(folder), "owner/mine", "--private")
    assert (done.returncode, done.stdout) == (0, f"{hub.endpoint}/owner/mine\n"), done.stderr
    assert hub.private == {"owner/mine": True}
    files = hub.files["owner/mine"]
    assert files["config.json"] == (folder / "config.json").read_bytes()
    assert files["model.safetensors"] == (folder / "ema.safetensors").read_bytes()
    names = {str(path.relative_to(folder)) for path in (folder / "tokenizers").rglob("*") if path.is_file()}
    assert set(files) == names | {"README.md", "config.json", "model.safetensors"}
    assert all(files[name] == (folder / name).read_bytes() for name in names)

    loaded = run(hub, tmp_path, "-c", LOAD, "owner/mine", str(tmp_path / "loaded"))
    assert loaded.returncode == 0, loaded.stderr
    for name in (*names, "config.json", "model.safetensors"):
        assert (tmp_path / "loaded" / name).read_bytes() == files[name]


def test_the_card_of_the_author_is_pushed_as_it_is_and_figures_make_a_new_one(hub, folder, tmp_path):
    (folder / "README.md").write_text("# My model\n")
    assert push(hub, tmp_path, str(folder), "owner/mine").returncode == 0
    assert hub.files["owner/mine"]["README.md"] == b"# My model\n"
    (tmp_path / "mine.json").write_text(json.dumps({"digits.accuracy": 0.97}))
    assert push(hub, tmp_path, str(folder), "owner/mine", "--evaluation", "mine.json").returncode == 0
    card = hub.files["owner/mine"]["README.md"].decode()
    assert "| digits.accuracy | 0.97 |" in card


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("owner/mine", None, r"owner/mine: the upload failed \(.*401.*\); log in with `hf auth login`, or give"),
        ("owner/mine", "hf_wrong", r"owner/mine: the upload failed \(.*401.*"),
        ("other/mine", TOKEN, r"other/mine: the upload failed \(.*403.*"),
        ("mine", TOKEN, r"mine: not a name on the hub; write OWNER/NAME"),
        ("owner/mi ne", TOKEN, r"owner/mi ne: not a name on the hub \("),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, folder, tmp_path, name, token, message):
    done = push(hub, tmp_path, str(folder), name, token=token)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("latentlm: ")]
    assert re.search(message, line)
    assert not hub.files


def test_a_hub_that_cannot_be_reached_is_one_line(folder, tmp_path):
    done = push(Hub("http://127.0.0.1:9"), tmp_path, str(folder), "owner/mine")
    assert done.returncode == 2
    assert "latentlm: owner/mine: the upload failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tokenizer_is_no_model(hub, folder, tmp_path):
    done = push(hub, tmp_path, str(folder / "tokenizers" / "image"), "owner/mine")
    assert done.returncode == 2
    assert "a tokenizer, not a model" in done.stderr
