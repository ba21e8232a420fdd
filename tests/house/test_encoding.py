"""Text in files is UTF-8, whatever the locale says: who reads or writes it says so."""

import ast
from pathlib import Path

import pytest

import latentlm

PACKAGE = Path(latentlm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text in the locale's encoding."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _by_locale(node)]


def _by_locale(call: ast.Call) -> bool:
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if is_method else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return is_method  # functions of these names are our own
    if name != "open":
        return False
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    words = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    modes = [word for word in words if word and set(word) <= set("rwxabt+")]
    if is_method:  # `path.open()`, or the `open` of some other class, which takes other things
        return not arguments or any("b" not in mode for mode in modes)
    return not any("b" in mode for mode in modes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_is_utf_8(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text(words)", True),
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("open(path, mode='w')", True),
        ("path.open()", True),
        ("path.open('w')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("open(path, 'a', encoding='utf-8')", False),
        ("open(path, 'rb+')", False),
        ("path.open('wb')", False),
        ("Source.open(path)", False),
        ("write_text(path, words)", False),
    ],
)
def test_the_check_sees_what_has_no_encoding(line, found):
    assert bool(without_encoding(line)) == found
