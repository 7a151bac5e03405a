"""What this process is among those of a launcher (`accelerate launch`, `torchrun`), and beside whatever else runs.

Stdlib only.
"""

from __future__ import annotations

import os


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


def share_cores() -> None:
    """Have threads that wait for work sleep instead of spin, unless the environment says how; before torch is loaded.

    OpenMP's threads spin, which gains a little on an idle machine. Where others need the cores, each waits for one that
    has lost its turn: on two busy cores, decoding's small products took 3 to 30 times as long as with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
