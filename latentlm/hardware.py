"""What the machine is good at: asked where a dtype or an operator is chosen, never assumed.

Place in the flow: below everything; training and generation ask it.
"""

from __future__ import annotations

import torch

_CPU_BF16 = ("avx512_bf16", "amx_bf16", "arm_bf16")


def multiplies_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether `device` has instructions for bf16 products. Emulated ones are slower than fp32: about four times on
    AVX-512 without BF16, eighty times on AVX2."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _CPU_BF16)
    return False


def mkl_is_at_home() -> bool:
    """Whether MKL has its fast kernels for this CPU; AMD's get others, in fp32 slower than oneDNN's
    (docs/log.md, 2026-11-26)."""
    return "AMD" not in torch.cpu.get_capabilities().get("cpu_name", "")
