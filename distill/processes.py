"""What this process is among those of a launcher (`accelerate launch`, `torchrun`), and beside whatever else runs.

Stdlib only.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping


def count() -> int:
    """How many there are; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Among all, from 0."""
    return int(os.environ.get("RANK") or 0)


def number_here() -> int:
    """Among those on this machine, from 0: the number of the GPU that is its own."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def is_first() -> bool:
    """Whether this is the one that writes, prints and holds the run folder's lock."""
    return number() == 0


def share_cores(environment: MutableMapping[str, str] | None = None) -> None:
    """Have OpenMP's threads spin for a moment only while they wait, unless the environment says how; before torch.

    By default they spin for milliseconds, and where others need the cores each then waits for one that has lost its
    turn. Two threads on two cores, 100 times two products of 4×576 and 576×1536: 36 a second by default, 32 so, 22
    when they sleep at once, on an idle machine; 0.2 to 4, 15 to 19 and 13 to 30 beside two or three busy processes.
    """
    found = os.environ if environment is None else environment
    if not any(name in found for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        found["GOMP_SPINCOUNT"] = "1000"
