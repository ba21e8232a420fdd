"""The commands in the documentation run. Blocks marked ```bash test or ```python test are taken, in order, by file.

They run in an empty folder with the command line of this installation; a file that one block writes is there for the
next. What trains for minutes is not marked.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latentlm

ROOT = Path(latentlm.__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]
BLOCK = re.compile(r"^```(bash|python) test\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    return BLOCK.findall(text)


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
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of_a_page_run(page, tmp_path):
    run_blocks(blocks(page.read_text(encoding="utf-8")), tmp_path)


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
