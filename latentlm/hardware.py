"""Queries of the hardware: devices, dtypes, fast CPU kernels, cores; and the number of threads.

Place in the flow: below everything; used by training and generation.
"""

from __future__ import annotations

import os
import time

import torch

from .errors import UserError

_CPU_BF16 = ("avx512_bf16", "amx_bf16", "arm_bf16")


DEVICES = "auto, cpu, cuda, cuda:N"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(name: torch.device | str = "auto") -> torch.device:
    """The torch device called `name`. "auto" is CUDA if torch sees a GPU, else the CPU.

    Raises UserError for a name that torch does not know and for a device that this machine lacks.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {str(name)!r} (known: {DEVICES})") from None
    if device.type != "cpu" and not _sees(device.type):
        raise UserError(f"device {str(name)!r} was asked for, but torch sees no {device.type.upper()} device")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        plural = "s" * (count > 1)
        raise UserError(f"device {str(name)!r} was asked for, but torch sees only {count} CUDA device{plural}")
    return device


def _sees(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type == kind


def choose_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype of a model's weights on `device`: "auto" is bf16 on a GPU with native bf16, else fp32.

    Raises UserError for a name that is not in `DTYPES`.
    """
    if name == "auto":
        name = "bf16" if torch.device(device).type == "cuda" and multiplies_bf16(device) else "fp32"
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r} (known: auto, {', '.join(DTYPES)})")
    return DTYPES[name]


def multiplies_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether `device` has native bf16 matrix products. Emulation is slower than fp32: about four times on AVX-512
    without BF16, eighty times on AVX2."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _CPU_BF16) and _onednn_has_bf16()
    return False


def _onednn_has_bf16() -> bool:
    """Whether oneDNN uses bf16 instructions. ONEDNN_MAX_CPU_ISA may forbid those that the CPU has."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prefers_mkl() -> bool:
    """Whether MKL uses its fast kernels on this CPU. On AMD it does not, and in fp32 oneDNN is faster there
    (docs/log.md, 2026-11-26)."""
    return "AMD" not in torch.cpu.get_capabilities().get("cpu_name", "")


_asked_for: list[int] = []  # numbers of threads that were asked for in this process
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
PARAMETERS_PER_THREAD, TRAINED_PER_THREAD = 8_000_000, 2_000_000
"""Fewest parameters per thread in generation and in training, whose products have more rows; with fewer, threads wait
for each other longer than they compute."""


def set_threads(
    requested: int | None = None, *, processes: int = 1, parameters: int | None = None, training: bool = False
) -> int:
    """Set torch's CPU threads of this process, and return how many.

    requested: the number to set. Default: OMP_NUM_THREADS where that is set; else the free cores, or in `training` all
    cores, divided by the `processes` on this machine, but no more than the model's `parameters` allow per thread.
    Many small operations are slower with a thread on a busy core; the large ones of training are not
    (docs/performance.md). Raises UserError for fewer than 1.
    """
    if requested is not None and requested < 1:
        raise UserError(f"threads must be at least 1, got {requested}")
    if requested is not None:
        _asked_for.append(requested)
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    chosen = requested or (int(given) if given.isdecimal() else None)
    if chosen is None:
        chosen = (num_cores() if training else free_cores()) // processes
        if parameters is not None:
            chosen = min(chosen, round(parameters / (TRAINED_PER_THREAD if training else PARAMETERS_PER_THREAD)))
    torch.set_num_threads(max(1, chosen))
    return max(1, chosen)


def set_default_threads(parameters: int) -> None:
    """Call `set_threads` for a model with `parameters` parameters, unless somebody asked for a number of threads."""
    if not _asked_for and torch.get_num_threads() in (num_cores(), len(_cores())):
        set_threads(parameters=parameters)


def num_cores() -> int:
    """Cores that this process may use; the two threads of a core count once."""
    cores = _cores()
    found = set()
    for core in cores:
        try:
            with open(SIBLINGS.format(core), encoding="ascii") as file:
                found.add(file.read())
        except OSError:  # not Linux
            return len(cores)
    return len(found)


def free_cores(seconds: float = 0.1) -> int:
    """Cores that this process may use and that are idle now, at least 1, at most `num_cores`.

    Measured over `seconds` from /proc/stat on Linux; elsewhere all cores count as idle.
    """
    cores = _cores()
    before = _idle_ticks(cores)
    if before is None:
        return num_cores()
    time.sleep(seconds)
    idle = (_idle_ticks(cores) - before) / (seconds * os.sysconf("SC_CLK_TCK"))
    return min(num_cores(), max(1, round(idle)))


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _idle_ticks(cores: set[int]) -> int | None:
    """Clock ticks that `cores` were idle since the machine started; None without /proc/stat."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            lines = [line.split() for line in file if line.startswith("cpu") and line[3].isdigit()]
    except OSError:
        return None
    return sum(int(line[4]) for line in lines if int(line[0][3:]) in cores)
