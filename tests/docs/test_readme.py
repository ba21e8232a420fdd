"""The commands in the documentation run. Blocks marked ```bash test or ```python test are taken, in order, by file.

They run in an empty folder with the command line of this installation; a file that one block writes is there for the
next. In blocks marked ```bash small every training takes two steps, on the example of docs/data_format.md, and what
comes from a hub is a small folder of that name. The rest is not marked: what needs minutes, or another machine.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backbones import write_backbone
from small import clip, picture

import latentlm
from latentlm.media.picture import save_image
from latentlm.media.sound import save_audio

ROOT = Path(latentlm.__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
BLOCK = re.compile(r"^```(bash|python) (test|small)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCES = "data.sources=[{manifest: pages.jsonl, held_out: kept.jsonl}]"
SHORT = ("training.steps=2", "training.sample_every=1", "training.optimizer.warmup_steps=1", "training.threads=1")


def blocks(text: str, kind: str = "test") -> list[tuple[str, str]]:
    return [(language, code) for language, found, code in BLOCK.findall(text) if found == kind]


def shortened(code: str) -> str:
    """The same commands, each training short and on small data."""
    lines = []
    for line in code.splitlines():
        command, comment, rest = line.partition("#")
        if command.startswith("latentlm train"):
            settings = SHORT if "data.sources=" in command else (SOURCES, *SHORT)
            command = f"{command.rstrip()} " + " ".join(f"--set '{setting}' " for setting in settings)
        lines.append(command + comment + rest)
    return "\n".join(lines)


def run_blocks(found: list[tuple[str, str]], folder: Path) -> None:
    """Run blocks one after the other; AssertionError shows the block that failed and what it printed."""
    shim = folder / ".bin" / "latentlm"
    shim.parent.mkdir()
    shim.write_text(f"#!{sys.executable}\nfrom latentlm.cli import main\nmain()\n")
    shim.chmod(0o755)
    search = f"{shim.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for language, code in found:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of_a_page_run(page, tmp_path):
    run_blocks(blocks(page.read_text(encoding="utf-8")), tmp_path)


@pytest.mark.timeout(900)
def test_the_trainings_of_the_readme_run(tmp_path):
    """Tokenizer, model, two processes, evaluation on what was held out; conversion, backbone, adapter."""
    for package in ("transformers", "peft"):
        pytest.importorskip(package)
    import tiny_vibevoice

    example = re.search(r"^```jsonl\n(.*?)^```$", (ROOT / "docs/data_format.md").read_text("utf-8"), re.M | re.S)[1]
    for name in ("pages", "kept"):
        (tmp_path / f"{name}.jsonl").write_text(example, encoding="utf-8")
    known = [line for line in example.splitlines(keepends=True) if "vectors" not in line]  # of the model to fine-tune
    (tmp_path / "mine.jsonl").write_text("".join(known), encoding="utf-8")
    generator = np.random.default_rng(0)
    save_image(picture(generator, 40), tmp_path / "apple.png")
    save_audio(clip(generator, 16000), tmp_path / "hello.wav")
    np.save(tmp_path / "circle.npy", generator.standard_normal((20, 2)))
    write_backbone(tmp_path / "SmolLM2-135M")
    tiny_vibevoice.save(tiny_vibevoice.build(), tmp_path / "VibeVoice-1.5B")
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "small")
    code = "".join(code for _, code in found)
    assert (
        len(re.findall("^latentlm (train|data|evaluate|convert) ", code, re.MULTILINE)) == len(code.splitlines()) == 8
    )
    run_blocks([(language, shortened(code)) for language, code in found], tmp_path)
    assert "own pictures" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert latentlm.load(tmp_path / "runs" / "mine").generate("a", to="text", max_tokens=1)


def test_the_readme_has_commands_to_test():
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [language for language, _ in found] == ["bash", "python"]
    assert "latentlm generate tiny" in found[0][1]
    assert "model.score" in found[1][1]


def test_a_command_that_fails_is_seen(tmp_path):
    page = "```bash test\nlatentlm data preview nowhere\n```\n\n```bash\nfalse\n```\n"
    assert len(blocks(page)) == 1
    with pytest.raises(AssertionError, match="no data source 'nowhere'"):
        run_blocks(blocks(page), tmp_path)


def test_the_readme_names_the_targets_of_the_makefile():
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE)
