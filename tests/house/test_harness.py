"""What conftest.py and margins.py promise of every test: order, random numbers, skips, figures and their margins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from margins import FILE, SEED, Figure, read, seed
from measure_margins import Margin, grouped, table

TESTS = Path(__file__).parents[1]
SAMPLE = """
import random
import numpy as np
import pytest
import torch

DRAWN = set()

@pytest.mark.parametrize("number", range(20))
def test_draws(number):
    DRAWN.add((random.random(), np.random.random(), torch.rand(()).item()))
    assert len(DRAWN) == 1

def test_needs_a_package():
    pytest.importorskip("no_such_package")

def test_needs_something_else():
    pytest.skip("no recordings here")

def test_states_a_figure(margin):
    margin("kept", 1.0, at_most=2)
    margin("missed", 1.0, at_least=2)
"""
WHOLE = "import pytest\npytest.importorskip('no_such_package')\n"


@pytest.fixture
def run(tmp_path):
    """Returns a run of sample tests under our conftest.py: their outcomes by name in the order in which they ran."""
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "test_whole.py").write_text(WHOLE)

    def start(*arguments: str) -> dict[str, str]:
        paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
        variables = {"PYTHONPATH": paths, FILE: str(tmp_path / "figures.jsonl"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-p", "conftest", "-v", "-rfEs", *arguments]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", "--rootdir", tmp_path, tmp_path]
        done = subprocess.run(command, env=os.environ | variables, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1, done.stdout + done.stderr  # test_states_a_figure fails
        return dict(re.findall(r"^test_sample.py::(\S+) ([A-Z]+)", done.stdout, re.MULTILINE)) | {
            "test_whole.py": "ERROR" if "ERROR test_whole.py" in done.stdout else "SKIPPED"
        }

    return start


def test_every_test_draws_anew_in_any_order_and_a_missing_package_can_be_an_error(run, tmp_path):
    found = run("--shuffle", "1", "--all-packages")
    draws = [name for name in found if "draws" in name]
    assert sorted(draws) == sorted(f"test_draws[{number}]" for number in range(20))
    assert draws != [f"test_draws[{number}]" for number in range(20)]
    assert {found[name] for name in draws} == {"PASSED"}
    assert (found["test_needs_a_package"], found["test_whole.py"]) == ("FAILED", "ERROR")
    assert found["test_needs_something_else"] == "SKIPPED"
    assert found["test_states_a_figure"] == "FAILED"
    assert read(tmp_path / "figures.jsonl") == [
        Figure("test_sample.py::test_states_a_figure", "kept", 1.0, 2.0, at_most=True),
        Figure("test_sample.py::test_states_a_figure", "missed", 1.0, 2.0, at_most=False),
    ]
    assert read(tmp_path / "none") == []


def test_a_seed_is_a_test_s_own_and_moved_as_a_whole(monkeypatch):
    monkeypatch.delenv(SEED, raising=False)
    assert (seed(), seed(3)) == (0, 3)
    monkeypatch.setenv(SEED, "2")
    assert (seed(), seed(3)) == (2000, 2003)


@pytest.mark.parametrize("value", [2.1, float("nan")])
def test_a_figure_beyond_its_bound_does_not_hold(value):
    assert not Figure("t", "loss", value, 2.0, at_most=True).holds
    assert Figure("t", "loss", 2.0, 2.0, at_most=True).holds
    assert Figure("t", "loss", 2.0, 2.0, at_most=False).holds


@pytest.mark.parametrize(
    ("values", "bound", "at_most", "wide"),
    [
        ([0.4, 0.5], 0.61, True, True),  # room 0.11, range 0.1
        ([0.4, 0.5], 0.59, True, False),
        ([0.4, 0.5], 0.45, True, False),  # beyond
        ([0.9, 0.95], 0.84, False, True),
        ([0.9, 0.95], 0.86, False, False),
        ([1.0, 1.0], 1.04, True, False),  # nothing varies, but 5% of the bound are wanted
        ([0.0, 0.0], 0.0, True, False),
        ([0.0, 0.0], 1e-5, True, True),
        ([float("nan"), 0.1], 1.0, True, False),
    ],
)
def test_a_margin_is_wide_by_the_range_and_by_the_bound(values, bound, at_most, wide):
    figures = [Figure("tests/a.py::test_b", "loss", value, bound, at_most) for value in values]
    (margin,) = grouped([*figures])
    assert margin == Margin(tuple(figures))
    assert margin.is_wide == wide
    assert ("too near" in table([margin])) != wide
