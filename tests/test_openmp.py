"""Waiting threads spin on an idle machine only, and never against what the user has set."""

import builtins
import io
import os
import subprocess
import sys

import pytest

from latentlm import openmp


@pytest.mark.parametrize(
    ("running", "found"), [(["1"], False), (["2"], True), (["3", "2", "1"], False), (["9"] * 5, True)]
)
def test_a_neighbour_is_one_that_runs_at_every_look(monkeypatch, running, found):
    left = [*running, *[running[-1]] * 5]
    opened = lambda *_, **__: io.StringIO(f"0.5 0.4 0.3 {left.pop(0)}/99 1234")  # noqa: E731
    monkeypatch.setattr(builtins, "open", opened)
    assert openmp.has_neighbours(5, 0.0) is found


def test_without_proc_there_is_no_neighbour(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    assert openmp.has_neighbours() is False


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"0 0", f"{openmp.SPIN_COUNT} 0"}),
        ({"GOMP_SPINCOUNT": "7"}, {"7 0"}),
        ({"OMP_WAIT_POLICY": "active"}, {"None None"}),
    ],
)
def test_importing_the_package_chooses_unless_the_user_has(given, expected):
    code = "import os, latentlm; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own | given)
    assert done.stdout.strip() in expected
