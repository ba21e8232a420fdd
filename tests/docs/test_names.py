"""Symbols and tests that the documentation names exist."""

import ast
import re
from pathlib import Path

import pytest

import latentlm

ROOT = Path(latentlm.__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SYMBOLS = re.compile(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")
TESTS = re.compile(r"`(?:([\w/]+\.py))?::(test_\w+)`")


def defined(node: ast.AST) -> dict[str, ast.AST]:
    """The definitions of a module or class: functions, classes, assigned or declared names, attributes of self."""
    found: dict[str, ast.AST] = {}
    if isinstance(node, ast.ClassDef):
        found |= {part.attr: part for part in ast.walk(node) if isinstance(part, ast.Attribute) and is_set(part)}
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
            found[part.name] = part
        elif isinstance(part, ast.Assign | ast.AnnAssign):
            for target in part.targets if isinstance(part, ast.Assign) else [part.target]:
                found |= {name.id: part for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def is_set(part: ast.Attribute) -> bool:
    return isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name) and part.value.id == "self"


def lacks(file: Path, symbol: str) -> bool:
    """Whether `file` does not define `symbol`, a name or Class.member."""
    node: ast.AST | None = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else None
    for name in symbol.split("."):
        node = defined(node).get(name) if node is not None else None
    return node is None


def wrong_names(text: str) -> list[str]:
    """Symbols (`file.py`: `a`, `b`) and tests (`file.py::test`, `::test`) in `text` that do not exist."""
    found = [
        f"{file}: {symbol}"
        for file, symbols in SYMBOLS.findall(text)
        for symbol in re.findall(r"[\w.]+", symbols)
        if lacks(ROOT / "latentlm" / file, symbol)
    ]
    file = ""
    for named, test in TESTS.findall(text):
        file = named or file
        if lacks(ROOT / "tests" / file, test):
            found.append(f"{file}::{test}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_only_what_exists(page):
    assert wrong_names(page.read_text(encoding="utf-8")) == []


def test_a_wrong_name_is_found():
    page = "`model/heads/base.py`: `Head`, `Head.forgotten` and `model/test_layers.py::test_nothing`"
    assert wrong_names(page) == [
        "model/heads/base.py: Head.forgotten",
        "model/test_layers.py::test_nothing",
    ]
    assert len(SYMBOLS.findall((ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8"))) > 40
    assert len(TESTS.findall((ROOT / "docs" / "numerics.md").read_text(encoding="utf-8"))) > 40
