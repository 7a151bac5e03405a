"""Positions of the lines of a file of any size, also while it grows."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
"""The index has one number per block; so has a search one look at its time."""
LONGEST_LINE = 8 << 20
"""Bytes of a line that are read; a longer one counts as damaged."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file, without its line end."""

    at: int
    """Its offset in bytes."""
    data: bytes
    end: int
    """The offset behind its line end."""
    is_ended: bool
    """Whether it has a line end; the last line of a file that is being written may have none yet."""


def lines_from(file: BinaryIO, at: int) -> Iterator[Line]:
    """The lines from an offset, which is that of a line, to the end; of a too long one, its beginning."""
    file.seek(at)
    while data := file.readline(LONGEST_LINE):
        end = at + len(data)
        rest = data
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
            end += len(rest)
        yield Line(at, data.rstrip(b"\r\n"), end, rest.endswith(b"\n"))
        at = end


class LineIndex:
    """How many lines of a file end before each block of 1 MiB; extended as the file grows, begun anew when replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._ends = [0]
        """Line ends before each block that has been read, and before the one after them."""
        self._tail = 0
        """Line ends in the last, unfinished block."""
        self._is_open = False
        """Whether the file's last line has no line end."""
        self._bytes = 0

    def count(self, seconds: float) -> tuple[int, bool]:
        """Lines counted in at most about so much time in all, and whether these are all; call again to count on."""
        with self._lock:
            is_whole = self._extend(time.monotonic() + seconds)
            return self._ends[-1] + self._tail + self._is_open, is_whole

    def offset(self, number: int) -> int:
        """The offset of the line with this number, from 0; the file's size where there are fewer lines."""
        with self._lock:
            if number == 0:
                return 0
            while not self._extend(time.monotonic() + 0.1) and self._ends[-1] + self._tail < number:
                pass
            block = bisect_right(self._ends, number - 1) - 1
            with self._path.open("rb") as file:
                file.seek(block * BLOCK_BYTES)
                data = file.read(BLOCK_BYTES)
            at = -1
            for _ in range(number - self._ends[block]):
                at = data.find(b"\n", at + 1)
                if at < 0:
                    return self._bytes
            return block * BLOCK_BYTES + at + 1

    def _extend(self, deadline: float) -> bool:
        """Read on until the deadline; returns whether the end was reached."""
        with self._path.open("rb") as file:
            state = self._path.stat()
            if self._file != (state.st_dev, state.st_ino) or state.st_size < self._bytes:
                self._file, self._ends = (state.st_dev, state.st_ino), [0]
                self._tail, self._is_open, self._bytes = 0, False, 0
            if state.st_size == self._bytes:
                return True
            file.seek((len(self._ends) - 1) * BLOCK_BYTES)
            while data := file.read(BLOCK_BYTES):
                self._bytes = (len(self._ends) - 1) * BLOCK_BYTES + len(data)
                self._tail, self._is_open = data.count(b"\n"), not data.endswith(b"\n")
                if len(data) < BLOCK_BYTES:
                    return True
                self._ends.append(self._ends[-1] + self._tail)
                self._tail = 0
                if time.monotonic() > deadline:
                    return False
        return True
