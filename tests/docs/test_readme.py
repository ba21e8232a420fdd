"""The commands in the documentation run. Blocks marked ```bash test or ```python test are taken, in order, by file.

They run in an empty folder with the command line of this installation; a file that one block writes is there for the
next. In blocks marked ```bash small every training takes two steps, on small data of the names that the page uses, and
what comes from a hub is a small folder of that name. The rest is not marked: what needs minutes, or another machine.
The README itself is short: few lines, narrow code and tables, so that it reads well on a telephone.
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
SOURCES = "data.sources=[{manifest: mine.jsonl}]"
SHORT = ("training.steps=2", "training.sample_every=1", "training.optimizer.warmup_steps=1", "training.threads=1")


def blocks(text: str, kind: str = "test") -> list[tuple[str, str]]:
    return [(language, code) for language, found, code in BLOCK.findall(text) if found == kind]


def commands(code: str) -> list[str]:
    """The lines of a block, those that end in a backslash joined with the next."""
    return code.replace("\\\n", " ").splitlines()


def shortened(code: str) -> str:
    """The same commands, each training short and on small data."""
    lines = []
    for line in commands(code):
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


def write_small_data(folder: Path) -> None:
    """What the pages call photos, set.parquet, recordings.jsonl, kept.jsonl, mine.jsonl, and a language model."""
    import pyarrow
    import pyarrow.parquet

    generator = np.random.default_rng(0)
    texts, files = [], []
    for name in ("red_fox", "snow_owl"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(4):
            path = folder / "photos" / name / f"{number}.png"
            save_image(picture(generator, 40), path)
            texts.append(name.replace("_", " "))
            files.append(path.read_bytes())
    pyarrow.parquet.write_table(pyarrow.table({"image": files, "text": texts}), folder / "set.parquet")
    save_image(picture(generator, 40), folder / "apple.png")
    for name in ("a.wav", "hello.wav"):
        save_audio(clip(generator, 16000), folder / name)
    line = re.search(r"^```json\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)[1]
    for name in ("recordings", "kept"):
        (folder / f"{name}.jsonl").write_text(line, encoding="utf-8")
    example = re.search(r"^```jsonl\n(.*?)^```$", (ROOT / "docs/data_format.md").read_text("utf-8"), re.M | re.S)[1]
    known = [line for line in example.splitlines(keepends=True) if "vectors" not in line]  # of the model to fine-tune
    (folder / "mine.jsonl").write_text("".join(known), encoding="utf-8")
    write_backbone(folder / "HuggingFaceTB" / "SmolLM2-135M")


def with_trainings() -> list[Path]:
    return [page for page in PAGES if blocks(page.read_text(encoding="utf-8"), "small")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", with_trainings(), ids=lambda path: path.name)
def test_the_trainings_of_a_page_run(page, tmp_path):
    for package in ("transformers", "peft", "pyarrow"):
        pytest.importorskip(package)
    write_small_data(tmp_path)
    found = blocks(page.read_text(encoding="utf-8"), "small")
    run_blocks([(language, shortened(code)) for language, code in found], tmp_path)
    if page.parent == ROOT:
        assert "hello" in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert latentlm.load(tmp_path / "runs" / "mine").generate("a", to="text", max_tokens=1)


def test_the_trainings_of_the_readme_are_commands_that_are_shortened():
    found = [line for _, code in blocks((ROOT / "README.md").read_text("utf-8"), "small") for line in commands(code)]
    assert len([line for line in found if line.startswith("latentlm train ")]) == 8
    assert all(re.match("latentlm (train|data|evaluate|generate) ", line) for line in found)
    short = shortened("latentlm train demo \\\n  --out runs/a\n")
    assert short.startswith("latentlm train demo    --out runs/a --set 'data.sources=")
    assert "--set 'training.steps=2'" in short


def test_the_readme_is_short_and_narrow():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    code = [line for part in "\n".join(lines).split("\n```")[1::2] for line in part.splitlines()]
    assert [line for line in code if len(line) > 76] == []
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) <= 8 + 2
    assert [row for row in rows if len(row) > 76] == []


def test_the_readme_has_commands_to_test():
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [language for language, _ in found] == ["bash", "python"]
    assert "latentlm generate tiny" in found[0][1]
    assert "latentlm.load" in found[1][1]


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
