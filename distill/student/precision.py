"""What a training run computes in, and whether this machine can."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from distill.errors import ModelError
from distill.student import models

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What /proc/cpuinfo says of x86 and ARM cores that compute in bfloat16."""


def compute_dtype(asked: str, device: torch.device, flags: set[str] | None = None) -> torch.dtype:
    """The dtype of `train.dtype`: `auto`, `bf16` or `fp32`; `flags` are the CPU's, its own when left out.

    Raises `ModelError` for bf16 where there is none.
    """
    if asked == "auto":
        return models.default_dtype(device)
    if asked == "bf16" and not has_bf16(device, flags):
        place = "this GPU" if device.type == "cuda" else "this CPU"
        raise ModelError(
            f"train.dtype is bf16, and {place} does not compute in it; leave it out (float32 is used) or take fp32"
        )
    return torch.bfloat16 if asked == "bf16" else torch.float32


def has_bf16(device: torch.device, flags: set[str] | None = None) -> bool:
    """Whether the device computes in bfloat16; CPUs that emulate it, at a tenth of the speed, do not."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(_BF16_FLAGS & (cpu_flags() if flags is None else flags))


def cpu_flags(source: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the CPU can do, by its flags; empty where the system does not say."""
    text = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
    return {flag for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M) for flag in line.split()}
