"""Memory that nothing refers to any more goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc gives memory back as it likes")
def test_what_the_heap_keeps_below_something_living_is_given_back():
    from distill.models.device import free_memory

    free_memory()
    before = resident_mb()
    tensors = [torch.ones(4096) for _ in range(8192)]
    last = tensors[-1]
    assert resident_mb() > before + 100
    del tensors
    assert resident_mb() > before + 100, "the heap has given it back by itself, so this shows nothing"
    free_memory()
    assert resident_mb() < before + 30
    assert bool((last == 1).all())
