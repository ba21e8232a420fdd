"""What a recipe or a folder is, is looked up in `config/kinds.py`; nothing asks for its class or its name."""

import ast
from pathlib import Path

import pytest

import latentlm
from latentlm.config.kinds import KINDS

PACKAGE = Path(latentlm.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "config"]
NAMES = {*KINDS, *(name for spec in KINDS.values() for name in spec.folder_kinds())}
RECIPES = {"Recipe", *(spec.config.__name__ for spec in KINDS.values())}


def asks_for_a_class(node: ast.AST) -> bool:
    """isinstance(x, SomeRecipe), issubclass, or type(x) is SomeRecipe."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        return bool(RECIPES & named(node.args[1]))
    return isinstance(node, ast.Compare) and any(bool(RECIPES & named(side)) for side in node.comparators)


def asks_for_a_kind(node: ast.AST) -> bool:
    """recipe.kind == "latentlm", fields["kind"] in ("image", …), fields.get("kind") != …, match recipe.kind: …"""
    if isinstance(node, ast.Match):
        patterns = {value.value for case in node.cases for value in ast.walk(case.pattern) if is_text(value)}
        return is_kind(node.subject) and bool(NAMES & patterns)
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    texts = {value.value for side in sides for value in ast.walk(side) if is_text(value)}
    return any(map(is_kind, sides)) and bool(NAMES & texts)


def is_kind(node: ast.AST) -> bool:
    """An expression that ends in `.kind`, `["kind"]`, `.get("kind")`, or the bare name."""
    if isinstance(node, ast.Call):
        return (
            isinstance(node.func, ast.Attribute) and node.func.attr == "get" and bool(node.args and word(node.args[0]))
        )
    if isinstance(node, ast.Subscript):
        return word(node.slice)
    return getattr(node, "attr", getattr(node, "id", None)) == "kind"


def word(node: ast.AST) -> bool:
    return is_text(node) and node.value == "kind"


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def named(node: ast.AST) -> set[str]:
    return {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}


def violations(source: str) -> list[int]:
    nodes = ast.walk(ast.parse(source))
    return [node.lineno for node in nodes if asks_for_a_class(node) or asks_for_a_kind(node)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_asks(path):
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(recipe, LatentLMRecipe)",
        "isinstance(recipe, (config.ImageTokenizerRecipe, SpeechTokenizerRecipe))",
        "type(recipe) is not LatentLMRecipe",
        'recipe.tokenizer.kind == "image"',
        'fields["kind"] in ("image", "speech")',
        '"latentlm" != fields.get("kind")',
        'kind == "conv_image"',
        'match recipe.kind:\n    case "image_tokenizer":\n        pass',
    ],
)
def test_the_check_sees_a_question(source):
    assert len(violations(source)) == 1


@pytest.mark.parametrize("source", ['event.kind == "token"', 'config.kind == "muon"', 'segment.modality == "image"'])
def test_the_check_lets_others_be(source):
    assert violations(source) == []
