"""A bound on the memory that a piece of work takes, set by the operating system."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded_memory(most: int) -> Iterator[None]:
    """Let the process take at most `most` bytes more in the block; Linux only, and for all of its threads.

    Python raises `MemoryError` at the bound, and libraries their own errors. For work that takes no GPU, whose drivers
    reserve memory of the process.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    import psutil

    before = resource.getrlimit(resource.RLIMIT_DATA)
    total = psutil.Process().memory_info().data + most
    soft = min([total, *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
