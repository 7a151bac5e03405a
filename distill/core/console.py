"""Terminal and log output: lines, warnings, progress; the only module that prints, with secrets struck out.

Everything goes to standard error but the results that a command was asked for (`result`), so that pipes stay clean. Of
several processes that a launcher has started the first one speaks; the others only say what ends them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from distill.core import processes
from distill.core.redaction import strike

PLAIN_SECONDS = 5.0
"""Seconds between two progress lines where the output is no terminal."""

ETA_SECONDS = 60.0
"""The time left is told by the pace of so many last seconds."""

_observers: list[Callable[[str], None]] = []
_silences: list[bool] = []
"""One for each block in which nothing is printed."""


class Progress(Protocol):
    """Interface for reporting progress of long work."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how much is done, of how much, and one short note."""


class Silent:
    """A progress that shows nothing."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Ignore it."""


def say(line: str) -> None:
    """One line for the reader, on standard error and in the run's log."""
    _emit(line, "")


def warn(line: str) -> None:
    """One line about something that the reader should look at."""
    _emit(f"warning: {line}", "33")


def error(line: str) -> None:
    """The one line that ends a failed command."""
    if not processes.is_first():
        print(f"error in process {processes.number()}: {strike(line)}", file=sys.stderr, flush=True)
    _emit(f"error: {line}", "31")


def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback on standard error, as Python writes it."""
    print(strike("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)


def result(line: str) -> None:
    """What a command was asked for, on standard output."""
    if processes.is_first() and not _silences:
        print(strike(line), flush=True)


class MarkedText(Protocol):
    """A text with highlighted spans."""

    @property
    def id(self) -> str:
        """What it is called."""

    @property
    def trained(self) -> Sequence[bool]:
        """For each token, whether it is trained."""

    def stretches(self) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is trained."""


def say_marked(text: MarkedText) -> None:
    """A training example for the reader, on standard error and, with marks for colours, in the run's log."""
    for line in _marked_lines(text, coloured=False):
        for observer in _observers:
            observer(strike(line))
    for line in _marked_lines(text, coloured=_has_colours(sys.stderr)) if not _silences else ():
        print(strike(line), file=sys.stderr, flush=True)


def show_marked(text: MarkedText) -> None:
    """A training example that a command was asked for, on standard output."""
    for line in _marked_lines(text, coloured=_has_colours(sys.stdout)):
        result(line)


def _has_colours(stream: Any) -> bool:
    return bool(stream.isatty()) and "NO_COLOR" not in os.environ


def _marked_lines(text: MarkedText, *, coloured: bool) -> list[str]:
    """What is trained is green, or stands in ⟦ ⟧; nothing in it can steer the terminal."""
    begin, end = ("\x1b[30;42m", "\x1b[0m") if coloured else ("⟦", "⟧")
    how = "green" if coloured else "in ⟦ ⟧"
    pieces = [
        _each_line(plain, begin, end) if trained and coloured else f"{begin}{plain}{end}" if trained else plain
        for plain, trained in ((_plain(piece), trained) for piece, trained in text.stretches())
    ]
    title = f"session {text.id}: {sum(text.trained)} of {len(text.trained)} tokens are trained ({how})"
    return [title, *(f"  {line}" for line in "".join(pieces).split("\n"))]


def _each_line(text: str, begin: str, end: str) -> str:
    return "\n".join(f"{begin}{line}{end}" for line in text.split("\n"))


def _plain(text: str) -> str:
    """The text with every character that could steer a terminal, or hide, written out."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


Paint = Callable[[str, str], str]
"""Dresses a text as what it is: `head`, `who`, `added`, `removed`."""

_COLOURS = {"head": "1", "who": "36", "added": "32", "removed": "31"}
_MARKS = {"added": ("{+", "+}"), "removed": ("[-", "-]")}


def painted(text: str, what: str) -> str:
    """In colours on a terminal that has them, else with the marks of word diffs."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[{_COLOURS[what]}m{text}\x1b[0m"
    before, after = _MARKS.get(what, ("", ""))
    return f"{before}{text}{after}"


def asked(prompt: str) -> Iterator[str]:
    """Lines that a person types after the prompt, until they end the input; lines of a pipe without one."""
    while True:
        try:
            yield input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return


def page(lines: Iterable[str]) -> None:
    """Results page by page on a terminal that has `less`, else as they come."""
    pager = shutil.which("less")
    if not sys.stdout.isatty() or pager is None:
        for line in lines:
            result(line)
        return
    with subprocess.Popen([pager, "-RFX"], stdin=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # the reader has seen enough
            process.stdin.writelines(f"{strike(line)}\n" for line in lines)
            process.stdin.close()


def _emit(line: str, colour: str) -> None:
    if not processes.is_first():
        return
    line = strike(line)
    for observer in _observers:
        observer(line)
    if _silences:
        return
    if colour and sys.stderr.isatty():
        line = f"\x1b[{colour}m{line}\x1b[0m"
    print(line, file=sys.stderr, flush=True)


@contextmanager
def observed(observer: Callable[[str], None]) -> Iterator[None]:
    """Hand every line to `observer` too, while the block runs (the run's log)."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def silenced() -> Iterator[None]:
    """Print nothing while the block runs; observers are still told."""
    _silences.append(True)
    try:
        yield
    finally:
        _silences.pop()


def progress(title: str, total: float | None = None, unit: str = "") -> _Bar | _Lines:
    """A progress to be used in a `with` block: a live bar on a terminal, a plain line every few seconds elsewhere."""
    live = sys.stderr.isatty() and processes.is_first() and not _silences
    return _Bar(title, total, unit) if live else _Lines(title, total, unit)


class _Bar:
    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn()]
        self._rich = RichProgress(*columns, console=Console(stderr=True))
        self._rich.start()
        self._task = self._rich.add_task(self._title, total=self._total, note=self._unit)
        return self

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._total = self._total if total is None else total
        self._rich.update(self._task, completed=done, total=self._total, note=strike(note) or self._unit)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()


def duration(seconds: float) -> str:
    """Such as `4.2 s`, `3 min 20 s` or `1 h 05 min`."""
    if seconds < 59.5:
        return f"{seconds:.{int(seconds < 9.95)}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Lines:
    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._last: tuple[float, str] | None = None
        self._seen: deque[tuple[float, float]] = deque()

    def __enter__(self) -> _Lines:
        self._started = self._spoke = time.monotonic()
        self._seen.append((self._started, 0.0))
        return self

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._total = self._total if total is None else total
        self._last = (done, note)
        if time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self._speak()

    def _speak(self) -> None:
        assert self._last is not None
        done, note = self._last
        self._spoke, self._last = time.monotonic(), None
        of = f"/{self._total:g}" if self._total is not None else ""
        unit = f" {self._unit}" if self._unit else ""
        seconds = self._spoke - self._started
        left = self._left(done)
        say(f"{self._title}: {done:g}{of}{unit}, {seconds:.0f} s{left}{', ' + note if note else ''}")

    def _left(self, done: float) -> str:
        """How long the rest takes at the pace of the last minute."""
        self._seen.append((self._spoke, done))
        while len(self._seen) > 2 and self._seen[0][0] < self._spoke - ETA_SECONDS:
            self._seen.popleft()
        (then, before), (now, after) = self._seen[0], self._seen[-1]
        if self._total is None or after <= before or done >= self._total:
            return ""
        return f", about {duration((self._total - done) * (now - then) / (after - before))} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None and time.monotonic() - self._started >= 2:
            self._speak()


Say: TypeAlias = Callable[[str], None]
"""Takes one line for the reader."""


def silent(line: object) -> None:
    """Say nothing."""
