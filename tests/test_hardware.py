"""What is asked of the machine."""

import pytest
import torch

from latentlm.hardware import choose_device, choose_dtype, prefers_mkl


@pytest.mark.parametrize(
    ("name", "home"),
    [("AMD EPYC", False), ("Intel(R) Xeon(R) Processor", True), ("QEMU Virtual CPU", True), (None, True)],
)
def test_mkl_is_at_home_on_all_but_amds_cpus(name, home, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if name is None else {"cpu_name": name})
    assert prefers_mkl() is home


@pytest.fixture
def gpus(monkeypatch):
    """Lets a test say how many GPUs torch sees, and whether they multiply bf16."""

    def has(count: int, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)

    return has


@pytest.mark.parametrize(
    ("count", "name", "chosen"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (1, "auto", "cuda"),
        (1, "cpu", "cpu"),
        (1, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
        (1, torch.device("cuda"), "cuda"),
    ],
)
def test_a_device_is_chosen_by_name(gpus, count, name, chosen):
    gpus(count)
    assert choose_device(name) == torch.device(chosen)


@pytest.mark.parametrize(
    ("count", "name", "message"),
    [
        (0, "cuda", "device 'cuda' was asked for, but torch sees no CUDA device"),
        (0, torch.device("cuda:1"), "device 'cuda:1' was asked for, but torch sees no CUDA device"),
        (1, "cuda:1", "device 'cuda:1' was asked for, but torch sees only 1 CUDA device"),
        (2, "cuda:2", "device 'cuda:2' was asked for, but torch sees only 2 CUDA devices"),
        (0, "hpu", "device 'hpu' was asked for, but torch sees no HPU device"),
        (1, "gpu", "unknown device 'gpu' (known: auto, cpu, cuda, cuda:N)"),
        (1, "", "unknown device '' (known: auto, cpu, cuda, cuda:N)"),
    ],
)
def test_a_device_that_is_not_there_is_named(gpus, count, name, message):
    gpus(count)
    with pytest.raises(ValueError) as refused:
        choose_device(name)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("bf16", "name", "device", "chosen"),
    [
        (True, "auto", "cuda", torch.bfloat16),
        (False, "auto", "cuda", torch.float32),
        (True, "fp32", "cuda", torch.float32),
        (True, "auto", "cpu", torch.float32),
        (True, "bf16", "cpu", torch.bfloat16),
    ],
)
def test_bf16_is_chosen_on_gpus_that_multiply_it(gpus, monkeypatch, bf16, name, device, chosen):
    gpus(1, bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr("latentlm.hardware._onednn_has_bf16", lambda: True)
    assert choose_dtype(name, device) == chosen
    with pytest.raises(ValueError, match=r"unknown dtype 'fp8' \(known: auto, fp32, bf16\)"):
        choose_dtype("fp8", device)
