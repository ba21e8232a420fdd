"""A section that a comment names (PAPER §1.3) is a heading of docs/paper_map.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = r"§(\d+(?:\.\d+)*)"
REFERENCE = re.compile(rf"PAPER {SECTION}((?:(?:, | and | to )§\d+(?:\.\d+)*)*)")


def headings(page: str) -> set[str]:
    return {number for line in re.findall(r"^#+ .*$", page, re.MULTILINE) for number in re.findall(SECTION, line)}


def references(text: str) -> set[str]:
    """The numbers behind each PAPER, also of an enumeration: PAPER §1, §2."""
    return {number for first, rest in REFERENCE.findall(text) for number in (first, *re.findall(SECTION, rest))}


def test_every_section_that_the_code_names_is_a_heading_of_the_paper_map():
    known = headings((ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8"))
    wrong = []
    for path in sorted(
        path for room in ("latentlm", "tests", "benchmarks", "docs") for path in (ROOT / room).rglob("*")
    ):
        if path.suffix in (".py", ".yaml", ".md") and path != Path(__file__):
            unknown = references(path.read_text(encoding="utf-8")) - known
            wrong += [f"{path.relative_to(ROOT)}: PAPER §{number}" for number in sorted(unknown)]
    assert wrong == []


def test_sections_and_references_are_read():
    page = "# Map §9\n\ntext §8\n\n### §1.1 Model\n\n### §2.2, §2.3 ImageNet\n"
    assert headings(page) == {"9", "1.1", "2.2", "2.3"}
    assert references("(PAPER §1.1, §2) and PAPER §6; §7 and PAPER §4.2 and §4.3") == {"1.1", "2", "6", "4.2", "4.3"}
