"""README and tour name every folder and module at the top of the package, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    path.name + "/" * path.is_dir()
    for path in (ROOT / "latentlm").iterdir()
    if not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")
} - {"pretrained/"}  # files of the packaged model


def tree_of_the_readme() -> set[str]:
    drawn = re.search(r"^latentlm/\n(.*?)^docs/", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)[1]
    return set(re.findall(r"(?<![\w./])(\w+(?:/|\.py))(?![\w/])", drawn))


def table_of_the_tour() -> set[str]:
    table = re.search(r"^\| \| folder \|.*?\n\n", (ROOT / "docs" / "tour.md").read_text("utf-8"), re.M | re.S)[0]
    cells = [row.split("|")[2] for row in table.splitlines()[2:] if row]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("drawn", [tree_of_the_readme, table_of_the_tour])
def test_every_room_is_drawn(drawn):
    assert ROOMS - drawn() - {"weights.py", "hub.py", "hardware.py", "openmp.py", "run_folder.py"} == set()


def test_the_tour_draws_no_room_that_is_not_there():
    assert table_of_the_tour() <= ROOMS


def test_the_readme_draws_no_room_that_is_not_there():
    names = {name for name in tree_of_the_readme() if name.endswith("/")}
    inside = {path.name + "/" for path in (ROOT / "latentlm").rglob("*") if path.is_dir()}
    assert names <= inside
