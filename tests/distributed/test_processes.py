"""Processes without a model: how many there are by default, which GPU they get, and how they end."""

import pytest
import torch

from latentlm.training import distributed
from latentlm.training.distributed import default_processes, start


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
