"""What is asked of the machine."""

import os

import pytest
import torch

from latentlm import UserError, hardware
from latentlm.hardware import (
    choose_device,
    choose_dtype,
    free_cores,
    num_cores,
    prefers_mkl,
    set_default_threads,
    set_threads,
)


@pytest.mark.parametrize(
    ("name", "home"),
    [("AMD EPYC", False), ("Intel(R) Xeon(R) Processor", True), ("QEMU Virtual CPU", True), (None, True)],
)
def test_mkl_is_preferred_on_all_but_amds_cpus(name, home, monkeypatch):
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


@pytest.fixture
def own_threads(monkeypatch):
    monkeypatch.setattr(hardware, "_asked_for", [])
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("variable", "arguments", "chosen"),
    [
        ("", {}, 8),
        ("", {"processes": 2}, 4),
        ("", {"processes": 16}, 1),
        ("", {"parameters": 7_100_000}, 1),
        ("", {"parameters": 30_000_000}, 4),
        ("", {"training": True}, 12),
        ("", {"training": True, "processes": 2}, 6),
        ("", {"training": True, "parameters": 9_200_000}, 5),
        ("", {"parameters": 100}, 1),
        ("", {"parameters": 10**9}, 8),
        ("", {"requested": 3, "parameters": 100}, 3),
        ("2", {"parameters": 100}, 2),
        ("2,1", {}, 2),
        ("many", {"parameters": 100}, 1),
        ("2", {"requested": 5}, 5),
    ],
)
def test_threads_are_those_asked_for_or_the_free_cores(monkeypatch, own_threads, variable, arguments, chosen):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(hardware, "free_cores", lambda: 8)
    monkeypatch.setattr(hardware, "num_cores", lambda: 12)
    assert set_threads(**arguments) == chosen == torch.get_num_threads()


def test_the_two_threads_of_a_core_count_once(tmp_path, monkeypatch, own_threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(hardware, "_cores", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(hardware, "SIBLINGS", str(tmp_path / "{}"))
    assert num_cores() == 4, "nothing says which belong together"
    for core, pair in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / str(core)).write_text(pair)
    assert num_cores() == 2
    monkeypatch.setattr(hardware, "_idle_ticks", lambda cores: None)
    assert free_cores() == 2
    for default in (2, 4):  # torch's own: with and without MKL
        monkeypatch.setattr(hardware, "_asked_for", [])
        torch.set_num_threads(default)
        set_default_threads(100)
        assert torch.get_num_threads() == 1


def test_a_model_that_is_loaded_sets_threads_but_never_changes_what_the_user_set(monkeypatch, own_threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(hardware, "free_cores", lambda: 2)
    monkeypatch.setattr(hardware, "num_cores", lambda: 3)
    torch.set_num_threads(4)  # by the user: not torch's default
    set_default_threads(10**9)
    assert torch.get_num_threads() == 4
    torch.set_num_threads(3)
    set_default_threads(10**9)
    assert torch.get_num_threads() == 2
    set_threads(3)
    set_default_threads(10**9)
    assert torch.get_num_threads() == 3


def test_no_threads_are_refused():
    with pytest.raises(UserError, match="threads must be at least 1, got 0"):
        set_threads(0)


def test_idle_cores_are_those_whose_ticks_go_on(monkeypatch):
    """/proc/stat of a machine with 4 cores, of which this process may use 3 and one of those is busy."""
    monkeypatch.setattr(hardware, "_cores", lambda: {0, 1, 3})
    monkeypatch.setattr(hardware, "num_cores", lambda: 3)
    monkeypatch.setattr(hardware.time, "sleep", lambda seconds: None)
    stat = "cpu 0 0 0 {total}\ncpu0 9 9 9 {a} 0\ncpu1 9 9 9 {b} 0\ncpu2 9 9 9 {c} 0\ncpu3 9 9 9 {d} 0\nintr 1\n"
    second = os.sysconf("SC_CLK_TCK")
    texts = iter([{"a": 5, "b": 7, "c": 1, "d": 2}, {"a": 5 + second, "b": 7, "c": 1 + second, "d": 2 + second}])

    class File(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    lines = lambda: File(stat.format(total=0, **next(texts)).splitlines())  # noqa: E731
    monkeypatch.setattr("builtins.open", lambda *_, **__: lines())
    assert free_cores(1.0) == 2


def test_where_the_system_does_not_say_all_cores_are_free(monkeypatch):
    monkeypatch.setattr(hardware, "_idle_ticks", lambda cores: None)
    assert free_cores() == num_cores() >= 1
