"""Rules on a row that show where they are measured, and a script that measures with one in other processes.

`python -m tests.support.odd_rules FOLDER ROWS SECONDS`: each of two processes leaves a file named by its id there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from distill.curate.rows import MeasuredRow, sift
from distill.types import Message, Session, Verdict


def row(number: int, answer: str = "A plain answer.") -> MeasuredRow:
    return MeasuredRow(Session(f"s{number}", (Message("user", f"Question {number}?"), Message("assistant", answer))))


class Where:
    """Says which process measured."""

    scope = "row"

    def measure(self, session: Session) -> int:
        return os.getpid()

    def decide(self, value: int) -> Verdict:
        return Verdict(rule="where", keep=True, reason="ok", value=value)


class Rooted(Where):
    """Cannot leave its process."""

    def __init__(self) -> None:
        self.here = lambda: None


class Deadly(Where):
    """Kills every process but the one that made it."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def measure(self, session: Session) -> int:
        if os.getpid() != self.home:
            os._exit(9)
        return self.home


class Slow(Where):
    """Takes its time, and leaves a mark."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def measure(self, session: Session) -> int:
        (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds)
        return os.getpid()


if __name__ == "__main__":
    from tests.support.odd_rules import Slow as Named  # the other processes do not know this file as the main one

    folder, rows, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    sift([row(number) for number in range(rows)], [("slow", Named(folder, seconds))], processes=2)
