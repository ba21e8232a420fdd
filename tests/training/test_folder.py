"""Whose a folder is: what is in it is never lost to another run."""

import subprocess
import sys
from pathlib import Path

import pytest

from latentlm.training.folder import locked_run_folder


def take(folder, resume):
    with locked_run_folder(folder, resume):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_without_its_checkpoints_is_not_free(tmp_path, resume):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="holds a model, but no checkpoint to resume from"):
        take(tmp_path, resume)


def test_a_run_that_never_reached_a_checkpoint_is_free(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    take(tmp_path, resume=False)


def test_nothing_to_resume_is_said(tmp_path, capsys):
    (tmp_path / "checkpoints" / "step-00000004.tmp").mkdir(parents=True)
    take(tmp_path, resume=True)
    take(tmp_path / "new", resume=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "no checkpoint to resume from, training starts from the beginning"
    ] * 2
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    take(tmp_path, resume=True)
    assert capsys.readouterr().err == ""


HOLD = """
import sys
from pathlib import Path
from latentlm.training.folder import locked_run_folder

with locked_run_folder(Path(sys.argv[1]), resume=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_run_s_at_a_time_until_its_process_ends_even_by_a_kill(tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is writing here"):
            take(tmp_path, resume=False)
        process.kill()
    take(tmp_path, resume=False)


def test_a_folder_is_held_in_this_process_too_and_free_again_after_an_error(tmp_path):
    def fail():
        with locked_run_folder(tmp_path, resume=False):
            with pytest.raises(ValueError, match="another run is writing here"):
                take(tmp_path, resume=False)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    take(tmp_path, resume=False)


def test_a_start_that_fails_leaves_no_folder(tmp_path):
    def fail(folder, *files):
        with locked_run_folder(folder, resume=False):
            for file in files:
                (folder / file).write_text("")
            raise ValueError("a recipe that cannot be built")

    (tmp_path / "there").mkdir()
    for folder, files in (("new", ()), ("runs/deep", ()), ("there", ()), ("begun", ("train.jsonl",))):
        with pytest.raises(ValueError, match="cannot be built"):
            fail(tmp_path / folder, *files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "there"]
    assert not any((tmp_path / "there").iterdir())
