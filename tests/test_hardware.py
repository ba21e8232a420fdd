"""What is asked of the machine."""

import pytest
import torch

from latentlm.hardware import mkl_is_at_home


@pytest.mark.parametrize(
    ("name", "home"),
    [("AMD EPYC", False), ("Intel(R) Xeon(R) Processor", True), ("QEMU Virtual CPU", True), (None, True)],
)
def test_mkl_is_at_home_on_all_but_amds_cpus(name, home, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if name is None else {"cpu_name": name})
    assert mkl_is_at_home() is home
