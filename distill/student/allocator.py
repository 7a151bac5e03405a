"""Has torch's memory on a GPU grow in place instead of in blocks of fixed sizes; loads no torch."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""What torch reads its allocator's settings from; older versions only from the second."""
OTHERS = ("PYTORCH_HIP_ALLOC_CONF",)
"""Which ROCm builds read where those are not set."""


def grow_in_place(environment: MutableMapping[str, str] | None = None) -> None:
    """Ask for it in the environment, this process's own when left out, unless settings are there already.

    Packed passes are never of one size twice; blocks of fixed sizes that one has freed may not serve the next. torch
    reads the setting when it first uses a GPU, so it has to come before that. Without a GPU it has no effect.
    """
    found = os.environ if environment is None else environment
    if not any(name in found for name in (*NAMES, *OTHERS)):
        found.update(dict.fromkeys(NAMES, "expandable_segments:True"))
