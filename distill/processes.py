"""Which of the processes this is that a launcher (`accelerate launch`, `torchrun`) has started; stdlib only."""

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
