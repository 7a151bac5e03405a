"""Device and dtype selection, and freeing of memory."""

from __future__ import annotations

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path

import torch

from distill.core import processes
from distill.errors import ModelError


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU; under a launcher, the GPU of this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", processes.number_here()) if processes.count() > 1 else torch.device("cuda")
    return torch.device("cpu")


def training_device(name: str) -> torch.device:
    """The device for `train.device`: `auto` or `mps`. Raises `ModelError` for mps on a machine without it."""
    if name != "mps":
        return default_device()
    if not torch.backends.mps.is_available():
        raise ModelError("train.device is mps, the GPU of Apple's chips, which torch does not find here; leave it out")
    return torch.device("mps")


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a CUDA GPU, in bytes; `None` for other devices."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, float32 elsewhere.

    CPUs without AVX512-BF16 emulate bfloat16. Tokens per CPU second, SmolLM2-135M, one AVX2 core, float32 | bfloat16:
    generating 32 rows 79 | 12, a forward pass of 256 tokens 358 | 46, an NF4 training step (5 layers) 243 | 11.
    """
    return torch.bfloat16 if device.type == "cuda" and has_bf16(device) else torch.float32


_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags in /proc/cpuinfo of x86 and ARM cores that compute in bfloat16."""


def compute_dtype(name: str, device: torch.device, flags: set[str] | None = None) -> torch.dtype:
    """The dtype for `train.dtype`: `auto`, `bf16` or `fp32`; `flags` are the CPU's, by default those of this machine.

    Raises `ModelError` for bf16 on a device without it.
    """
    if name == "auto":
        return default_dtype(device)
    if name == "bf16" and not has_bf16(device, flags):
        place = "this CPU" if device.type == "cpu" else "this GPU"
        raise ModelError(
            f"train.dtype is bf16, and {place} does not compute in it; leave it out (float32 is used) or take fp32"
        )
    return torch.bfloat16 if name == "bf16" else torch.float32


def has_bf16(device: torch.device, flags: set[str] | None = None) -> bool:
    """Whether the device computes in bfloat16, without emulating it at a tenth of the speed; untried on mps."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return False
    return bool(_BF16_FLAGS & (cpu_flags() if flags is None else flags))


def cpu_flags(source: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The feature flags of the CPU; empty where the system does not report them."""
    text = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
    return {flag for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.M) for flag in line.split()}


def free_memory() -> None:
    """Return unused memory to the GPU and to the system.

    Loading a quantised model frees its float32 weights layer by layer, and glibc keeps them in its heap: 814 MB for
    141 million weights in NF4, which take 380 MB with their adapter.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
