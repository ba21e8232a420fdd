"""Shared parts of the benchmarks: a figure with its requirement, a description of the hardware, the table, the JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured number. `required` reads "< 5" or ">= 0.4"; empty if there is no requirement. `detail` is JSON."""

    name: str
    what: str
    measured: float
    unit: str
    required: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if not self.required:
            return None
        relation, limit = self.required.split()
        return {
            "<": self.measured < float(limit),
            "<=": self.measured <= float(limit),
            ">=": self.measured >= float(limit),
        }[relation]


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, versions, and the processor's instructions for bf16 products."""
    import torch

    from latentlm.hardware import multiplies_bf16

    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "bf16_native": multiplies_bf16(),
        "instructions": instructions(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def instructions() -> list[str]:
    """Instruction sets for bf16 products, as torch names them; ONEDNN_MAX_CPU_ISA limits which of them oneDNN uses."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    native = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    return native + ([f"at most {limit}"] if limit else [])


def processor_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(figures: list[Figure]) -> str:
    rows = [("what", "measured", "required", "")]
    for figure in figures:
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        rows.append((figure.what, f"{figure.measured:.3g} {figure.unit}".strip(), figure.required, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def describe(machine: dict[str, Any]) -> str:
    bf16 = f"native ({', '.join(machine['instructions'])})" if machine["bf16_native"] else "emulated, slower than fp32"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; torch {machine['torch']}, "
        f"{machine['threads']} threads; bf16 is {bf16}; load average at the start {machine['load_average']}"
    )


def write_json(path: Path, figures: list[Figure], machine: dict[str, Any], settings: dict[str, Any]) -> None:
    record = {
        "hardware": machine,
        "settings": settings,
        "figures": {figure.name: asdict(figure) | {"met": figure.met} for figure in figures},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


__all__ = ["Figure", "describe", "hardware", "median", "seconds_of", "table", "write_json"]
