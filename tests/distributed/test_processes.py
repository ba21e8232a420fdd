"""Processes without a model: how many there are by default, which GPU they get, and how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentlm.training import distributed
from latentlm.training.distributed import default_processes, launch, start


@pytest.mark.parametrize(
    ("cores", "gpus", "expected"), [(1, None, 1), (2, None, 2), (8, None, 2), (8, 1, 1), (8, 4, 2), (1, 4, 1)]
)
def test_by_default_one_process_a_core_or_gpu_and_two_at_most(monkeypatch, cores, gpus, expected):
    monkeypatch.setattr(distributed, "num_cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus or 0)
    assert default_processes() == expected


def test_more_processes_than_gpus_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="2 processes on this machine, but torch sees only 1 CUDA device: each"):
        start()


def launched(tmp_path, body):
    """The exit code of two processes that run `body`, which has `rank`."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{body}")
    return launch(2, [str(script)])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_process_that_a_signal_ended_is_named(tmp_path, capfd, rank, name):
    body = f"os.kill(os.getpid(), signal.{name}) if rank == {rank} else time.sleep(60)"
    number = getattr(signal, name)
    assert launched(tmp_path, body) == 128 + number
    assert capfd.readouterr().err == f"latentlm: process {rank} was ended by signal {number:d} ({name})\n"


def test_of_two_that_failed_the_one_that_a_signal_ended_is_named(tmp_path, capfd, monkeypatch):
    """Rank 0 fails for want of rank 1, and is looked at first."""
    os.mkfifo(tmp_path / "alive")  # open in rank 1, so it ends for rank 0 when that one does
    body = f"""
alive = open({str(tmp_path / "alive")!r}, "w" if rank == 1 else "r")
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(alive.read() + "missed")
"""
    began = time.sleep
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: began(3))
    assert launched(tmp_path, body) == 137
    assert capfd.readouterr().err == "missed\nlatentlm: process 1 was ended by signal 9 (SIGKILL)\n"


IMPATIENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from latentlm.training.distributed import launch
launch(2, [sys.argv[1]])
"""

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: open(f"{sys.argv[0]}.{os.environ['RANK']}.told", "w"))
print(os.getpid(), file=open(f"{sys.argv[0]}.{os.environ['RANK']}", "w"), flush=True)
time.sleep(240)
"""


def started(tmp_path, body):
    """A process that launches two of `body`, and their numbers, once they run."""
    script = tmp_path / "script.py"
    script.write_text(body)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", IMPATIENT, str(script)]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    files = [tmp_path / f"script.py.{rank}" for rank in range(2)]
    while not all(file.is_file() and file.read_text().endswith("\n") for file in files):
        assert parent.poll() is None
        time.sleep(0.05)
    return parent, [int(file.read_text()) for file in files]


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(number):
    """Not so where it has ended and nobody has asked for its exit code, as in a container without an init."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_leaves_no_process_behind(tmp_path, number):
    parent, children = started(tmp_path, STUBBORN)
    parent.send_signal(number)
    told = [tmp_path / f"script.py.{rank}.told" for rank in range(2)]
    wait_until(lambda: all(file.is_file() for file in told))  # the first one has reached both
    assert parent.poll() is None
    parent.send_signal(number)
    parent.communicate(timeout=120)
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_processes_do_not_outlive_the_one_that_launched_them(tmp_path):
    following = "from latentlm.training.distributed import follow_launcher\nfollow_launcher()\n"
    parent, children = started(tmp_path, following + STUBBORN)
    assert all(map(is_running, children))
    parent.kill()
    parent.communicate(timeout=120)
    wait_until(lambda: not any(map(is_running, children)))
