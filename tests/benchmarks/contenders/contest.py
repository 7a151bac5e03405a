"""What each contender is told and says of itself; standard library only, for each runs in its own environment."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from resource import RUSAGE_SELF, getrusage


@dataclass
class Result:
    """How it went; times are of the requests alone, without imports."""

    requests: int = 0
    """Answered."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process, all its threads."""


class Measured(Result):
    """Measures the `with` block that it opens."""

    def __enter__(self) -> Measured:
        self._started, self._cpu = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = _cpu_seconds() - self._cpu


def parser() -> argparse.ArgumentParser:
    """The options that all have in common."""
    options = argparse.ArgumentParser()
    options.add_argument("--url", required=True)
    options.add_argument("--requests", type=int, required=True)
    options.add_argument("--concurrency", type=int, required=True, help="requests in flight")
    return options


def question(number: int) -> str:
    """Twenty-six words, as a short instruction has, each different."""
    return f"Question {number}: " + "explain in a few words what there is to know about this " * 2


def tell(result: Result, **more: object) -> None:
    """One line of JSON, the last on standard output."""
    sys.stdout.write(f"{json.dumps(asdict(result) | more)}\n")


def _cpu_seconds() -> float:
    used = getrusage(RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
