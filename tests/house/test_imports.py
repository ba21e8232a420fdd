"""Imports point one way only, and importing does nothing: read from the source, and checked in a fresh process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import latentlm

PACKAGE = Path(latentlm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = (
    {"errors", "openmp"},
    {"types", "weights", "hub", "hardware"},
    {"config"},
    {"media", "run_folder"},
    {"tokenizers", "diffusion"},
    {"modalities"},
    {"data", "model"},
    {"checkpoint"},
    {"baselines", "generation"},
    {"interop"},
    {"training", "serving", "evaluation"},
    {"demo"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
"""A room may import rooms of lower levels, and itself."""
TOP = {"commands", "cli", "__main__"}
FACE = "__init__"
"""The public names: below the command line, above everything else."""

HEAVY = {"scipy", "matplotlib", "pocketsphinx", "torchmetrics", "tensorboard", "soundfile", "soxr", "PIL", "grain"}
HEAVY |= {
    "array_record",
    "fsspec",
    "pyarrow",
    "ray",
    "espeakng_loader",
    "diffusers",
    "transformers",
    "peft",
    "pesq",
    "pystoi",
    "jiwer",
    "sklearn",
    "gradio",
    "fastapi",
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path, tree: ast.AST) -> set[str]:
    """Rooms of this package that a file imports anywhere, inside functions and for type checkers too."""
    here = ("latentlm", *path.relative_to(PACKAGE).with_suffix("").parts)
    rooms: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module.split(".")]
        elif isinstance(node, ast.ImportFrom):
            parent = [*here[: -node.level], *(node.module.split(".") if node.module else [])]
            names = [[*parent, alias.name] for alias in node.names] if parent == ["latentlm"] else [parent]
        else:
            continue
        own = [name for name in names if name[0] == "latentlm"]
        rooms |= {name[1] if len(name) > 1 and name[1] in LEVEL else FACE for name in own}
    return rooms


def module_level(tree: ast.Module) -> list[ast.AST]:
    """Everything that runs at import: not the bodies of functions, nor what only type checkers read."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        found.append(node)
        waiting += ast.iter_child_nodes(node)
    return found


def violations(path: Path, source: str) -> list[str]:
    room, tree = room_of(path), ast.parse(source)
    if room == FACE:
        return []
    found = []
    for other in imported_rooms(path, tree):
        allowed = room in TOP if other == FACE else other == room or LEVEL[other] < LEVEL[room]
        if not allowed:
            found.append(f"{path.relative_to(PACKAGE)} imports {other}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert room_of(path) in LEVEL or room_of(path) == FACE, f"{path}: give its room a level above"
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("types.py", "from .model.cache import Y"),
        ("model/cache.py", "def f():\n    from ..generation.engine import Engine"),
        ("tokenizers/base.py", "import latentlm.data.packing"),
        ("training/trainer.py", "from .. import load"),
        ("training/trainer.py", "from ..evaluation import report"),
        ("data/cache.py", "from ..model import cache"),
    ],
)
def test_the_check_sees_an_import_that_points_up(name, source):
    assert len(violations(PACKAGE / name, source)) == 1


PROGRAMS = ("espeak_process.py", "make_digits.py", "make_emoji.py", "make_prose.py", "make_judge.py")
"""Run as scripts of their own, never imported by the package."""


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name not in PROGRAMS], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_heavy_import_at_module_level(path):
    names = set()
    for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    assert names & HEAVY == set()


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh process after `statement`, which must not print."""
    code = f"import sys\n{statement}\nsys.stderr.write(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_else():
    assert not loaded_by("import latentlm") & (HEAVY | {"torch", "numpy", "pydantic", "cyclopts", "rich"})


def test_importing_the_command_line_does_not_import_torch():
    assert not loaded_by("import latentlm.cli") & (HEAVY | {"torch", "numpy"})


def test_the_public_names_come_without_heavy_libraries():
    names = ", ".join(name for name in latentlm.__all__ if name != "__version__")
    loaded = loaded_by(f"from latentlm import {names}")
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_embedded_sources_need_none_of_the_libraries_of_large_data():
    loaded = loaded_by(
        "from latentlm.config import SourceConfig; from latentlm.data import sources;"
        "assert len(sources.documents(SourceConfig(name='digits', task='text_to_image'))[0].segments) == 2"
    )
    assert not loaded & {"array_record", "fsspec", "pyarrow", "ray", "pandas"}


def test_the_public_names_are_listed_and_no_other_is_there():
    assert set(latentlm.__all__) <= set(dir(latentlm))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = latentlm.lod
