"""`vectors` as a user meets it: a manifest of .npy files trains, generates, streams, is evaluated and shown."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from margins import seed

import latentlm
from latentlm.cli import main
from latentlm.evaluation.evaluate import evaluate_tokenizer
from latentlm.tokenizers.load import load_tokenizer

RECIPE = {
    "kind": "latentlm",
    "model": {
        "transformer": {"width": 48, "num_layers": 2, "num_heads": 4, "context_length": 64},
        "head": {"num_layers": 2, "width": 96},
        "diffusion": {"prediction": "x0"},
    },
    "data": {"sequence_length": 64, "rows": 8},
    "training": {
        "steps": 150, "sample_every": 75, "ema": 0.98, "precision": "fp32", "threads": 1, "seed": seed(),
        "optimizer": {"learning_rate": 0.004, "warmup_steps": 10},
    },
}  # fmt: skip


def path_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A circle or a line in the plane, (12 to 18, 2)."""
    t = np.linspace(0, 1, int(rng.integers(12, 19)))
    if kind == "line":
        return np.stack([2 * t - 1, np.full_like(t, 0.2 * rng.standard_normal())], 1)
    return np.stack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)], 1) * (1 + 0.05 * rng.standard_normal())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run and the data that it was trained on."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(seed())
    for split, num in (("train", 80), ("kept", 20)):
        lines = []
        for number in range(num):
            kind = ("circle", "line")[number % 2]
            np.save(folder / f"{split}{number}.npy", path_of(kind, rng))
            given = {"text": kind, "condition": True}
            lines.append(json.dumps({"segments": [given, {"vectors": f"{split}{number}.npy"}]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    source = {"manifest": str(folder / "train.jsonl"), "held_out": str(folder / "kept.jsonl")}
    recipe = RECIPE | {"data": RECIPE["data"] | {"sources": [source]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")])
    return folder


def test_the_command_line_writes_vectors(folder):
    out = folder / "out.npy"
    main(["generate", str(folder / "run"), "circle", "--to", "vectors", "--out", str(out), "--guidance", "1"])
    made = np.load(out)
    assert made.dtype == np.float32
    assert made.shape[1] == 2
    assert len(made) > 1


def test_streamed_vectors_are_the_whole_ones(folder):
    model = latentlm.load(folder / "run")
    (whole,) = model.generate("line", to="vectors", seed=3)
    pieces = list(model.stream(latentlm.Request("line", "vectors", seed=3)))
    assert len(pieces) > 2
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_vectors_are_a_prompt_as_array_file_and_segment(folder):
    model = latentlm.load(folder / "run")
    array = np.load(folder / "kept0.npy")
    answers = [
        model.generate(prompt, to="text", max_tokens=4)
        for prompt in (array, folder / "kept0.npy", latentlm.Vectors(array))
    ]
    assert answers[0] == answers[1] == answers[2]


def test_the_condition_is_heard(folder, margin):
    """Held out: the loss of a path under its own word over that under the other one."""
    report = folder / "report.json"
    main(["evaluate", str(folder / "run"), "--out", str(report)])
    found = json.loads(report.read_text())
    assert found["documents.vectors.stop_rate"] >= 0
    ratio = found["documents.vectors_loss"] / found["reference.documents.vectors_loss"]
    margin("loss over the loss under another's condition", ratio, at_most=0.6)


def test_the_page_and_the_samples_have_plots(folder):
    main(["evaluate", str(folder / "run"), "--out", str(folder / "report.html")])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Vectors made" in page
    assert page.count("data:image/png") >= 8
    assert sorted(path.name for path in (folder / "run" / "samples").glob("*.png")) == [
        "step-00000075-vectors.png",
        "step-00000150-vectors.png",
    ]


def test_data_commands_know_vectors(folder, capsys):
    main(["data", "preview", str(folder / "train.jsonl"), "-n", "1"])
    assert "vectors train0.npy" in capsys.readouterr().out
    main(["data", "preview", str(folder / "train.jsonl"), "-n", "2", "--out", str(folder / "look")])
    assert [path.name for path in sorted((folder / "look").iterdir())] == ["0_1.png", "1_1.png"]
    main(["data", "validate", str(folder / "train.jsonl")])
    assert "80 vectors" in capsys.readouterr().out


def test_another_width_is_one_line(folder):
    np.save(folder / "wide.npy", np.zeros((4, 3)))
    done = subprocess.run(
        [sys.executable, "-m", "latentlm", "generate", str(folder / "run"), str(folder / "wide.npy"), "--to", "text"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "latentlm: vectors of width 3; this model reads width 2"


def test_the_exported_model_has_the_ids_of_its_special_tokens(folder):
    fields = json.loads((folder / "run" / "model" / "tokenizers" / "text" / "config.json").read_text())
    assert fields["ids"]["bod:vectors"] == 263


def test_a_tokenizer_of_vectors_has_no_figures_and_its_folder_is_one_line(folder, capsys):
    path = folder / "run" / "model" / "tokenizers" / "vectors"
    report = evaluate_tokenizer(load_tokenizer(path))
    assert report.figures == {}
    assert report.left_out == {"reconstruction.vectors": "not measured, there is no measure for this modality"}
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(path), "--out", str(folder / "vectors.json")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"latentlm: {path}/config.json: ")
