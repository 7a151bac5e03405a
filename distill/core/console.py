"""Terminal and log output: lines, warnings, progress; the only module that prints.

Every text passes `_shown` on its way out: secrets are struck out, and characters that steer a terminal or hide become
visible. Everything goes to standard error except the results of commands (`result`), so that pipes stay clean. Of
several processes that a launcher has started, only the first prints; the others print what ends them.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from distill.core import processes
from distill.core.redaction import strike
from distill.errors import visible

PLAIN_SECONDS = 5.0
"""Seconds between two progress lines where the output is no terminal."""

ETA_SECONDS = 60.0
"""The time left is estimated from the pace of the last 60 seconds."""

_observers: list[Callable[[str], None]] = []
_silences: list[bool] = []
"""One for each block in which nothing is printed."""

_STYLES = {
    "error": ("31", "", ""),
    "warning": ("33", "", ""),
    "head": ("1", "", ""),
    "who": ("36", "", ""),
    "added": ("32", "{+", "+}"),
    "removed": ("31", "[-", "-]"),
    "trained": ("30;42", "", ""),
}
"""By kind of text, its colour and the marks around it where there are no colours."""


class Progress(Protocol):
    """Interface for reporting progress of long work."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Report how much is done, of how much, and a short note."""


class Silent:
    """A progress that shows nothing."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Ignore it."""


def say(line: str) -> None:
    """One line for the reader, on standard error and in the run's log."""
    if not processes.is_first():
        return
    _log(line)
    if not _silences:
        _print(line, sys.stderr)


def _log(line: str) -> None:
    for observer in _observers:
        observer(_shown(line, coloured=False))


def warn(line: str) -> None:
    """One line about something that the reader should look at."""
    say(painted(f"warning: {line}", "warning"))


def error(line: str) -> None:
    """The one line that ends a failed command."""
    if not processes.is_first():
        _print(f"error in process {processes.number()}: {line}", sys.stderr)
    say(painted(f"error: {line}", "error"))


def crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback on standard error, as Python writes it."""
    _print("".join(traceback.format_exception(kind, error, trace)).rstrip(), sys.stderr)


class LibraryLog(logging.Handler):
    """Prints what libraries log as warnings or errors, in place of `logging.lastResort`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record on standard error."""
        _print(self.format(record), sys.stderr)


def result(line: str) -> None:
    """A line of a command's result, on standard output."""
    if processes.is_first() and not _silences:
        _print(line, sys.stdout)


def _print(line: str, stream: Any) -> None:
    try:
        print(_shown(line, coloured=_has_colours(stream)), file=stream, flush=True)
    except BrokenPipeError:  # of `| head`: the work goes on, and the run's log has every line
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def write_any_text() -> None:
    """Have characters that the locale's encoding lacks, as in LC_ALL=C, written as escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _has_colours(stream: Any) -> bool:
    return bool(stream.isatty()) and "NO_COLOR" not in os.environ


Paint: TypeAlias = Callable[[str, str], str]
"""Marks a text by its kind: `head`, `who`, `added`, `removed`."""


def painted(text: str, kind: str) -> str:
    """The text, shown in the colour of its kind on a terminal, elsewhere between the marks of word diffs."""
    return f"⟪{_tag()} {kind}⟫{text}⟪{_tag()} /{kind}⟫"


@cache
def _tag() -> str:
    """Random, so that no text from elsewhere can be taken for one of `painted`."""
    return secrets.token_hex(8)


def _shown(line: str, *, coloured: bool) -> str:
    """The text as it may be printed or logged."""

    def sign(match: re.Match[str]) -> str:
        colour, begin, end = _STYLES[match[2]]
        if coloured:
            return "\x1b[0m" if match[1] else f"\x1b[{colour}m"
        return end if match[1] else begin

    return re.sub(rf"⟪{_tag()} (/?)(\w+)⟫", sign, visible(strike(line)))


class MarkedText(Protocol):
    """A text with highlighted spans."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def trained(self) -> Sequence[bool]:
        """For each token, whether it is trained."""

    def stretches(self) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is trained."""


def say_marked(text: MarkedText) -> None:
    """A training example for the reader, on standard error and, with marks for colours, in the run's log."""
    for line in _marked_lines(text, coloured=False):
        _log(line)
    for line in _marked_lines(text, coloured=_has_colours(sys.stderr)) if not _silences else ():
        _print(line, sys.stderr)


def show_marked(text: MarkedText) -> None:
    """A training example as a command's result, on standard output."""
    for line in _marked_lines(text, coloured=_has_colours(sys.stdout)):
        result(line)


def _marked_lines(text: MarkedText, *, coloured: bool) -> list[str]:
    """Trained text is green, or between ⟦ and ⟧; characters that are not printable are written out."""
    pieces = []
    for piece, trained in text.stretches():
        plain = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in piece)
        if trained and coloured:
            plain = "\n".join(painted(line, "trained") for line in plain.split("\n"))
        pieces.append(f"⟦{plain}⟧" if trained and not coloured else plain)
    how = "green" if coloured else "in ⟦ ⟧"
    title = f"session {text.id}: {sum(text.trained)} of {len(text.trained)} tokens are trained ({how})"
    return [title, *(f"  {line}" for line in "".join(pieces).split("\n"))]


def asked(prompt: str) -> Iterator[str]:
    """Lines that a person types after the prompt, until the end of input; from a pipe, without a prompt."""
    while True:
        try:
            yield input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return


def at_terminal() -> bool:
    """Whether a question can be asked: lines come from a terminal and go to one, and no launcher has started others."""
    return sys.stdin.isatty() and sys.stderr.isatty() and processes.count() == 1


def confirmed(question: str) -> bool:
    """Whether the answer typed is y or yes."""
    print(_shown(f"{question} [y/N] ", coloured=False), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@cache
def hint(line: str) -> None:
    """One line for a person at a terminal, on standard error, once: in no log and no pipe."""
    if sys.stderr.isatty() and processes.is_first() and not _silences:
        _print(line, sys.stderr)


def open_page(address: str) -> None:
    """Say a page's address, and open it in a browser where this terminal is on a desktop."""
    say(f"open {address} (Ctrl-C ends it)")
    is_desktop = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.stderr.isatty() and is_desktop:
        import webbrowser

        webbrowser.open(address)


def page(lines: Iterable[str]) -> None:
    """Results, through `less` on a terminal that has it."""
    pager = shutil.which("less") if sys.platform != "win32" else None
    if not sys.stdout.isatty() or pager is None:
        for line in lines:
            result(line)
        return
    with processes.start([pager, "-RFX"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # the reader has quit
            coloured = _has_colours(sys.stdout)
            process.stdin.writelines(f"{_shown(line, coloured=coloured)}\n".encode() for line in lines)
            process.stdin.close()


@contextmanager
def observed(observer: Callable[[str], None]) -> Iterator[None]:
    """Pass every line to `observer` too, while the block runs (the run's log)."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def silenced(*, observers: bool = True) -> Iterator[None]:
    """Print nothing while the block runs; `observers` still get every line."""
    muted = [] if observers else _observers.copy()
    if muted:
        _observers.clear()
    _silences.append(True)
    try:
        yield
    finally:
        _silences.pop()
        _observers.extend(muted)


def progress(title: str, total: float | None = None, unit: str = "") -> _Bar | _Lines:
    """Progress to use in a `with` block: a live bar on a terminal; in the log and elsewhere, lines."""
    live = sys.stderr.isatty() and processes.is_first() and not _silences
    return _Bar(title, total, unit) if live else _Lines(title, total, unit)


class _Bar:
    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._lines = _Lines(title, total, unit, say=_log)

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn()]
        self._rich = RichProgress(*columns, console=Console(stderr=True))
        self._rich.start()
        self._lines.__enter__()
        self._task = self._rich.add_task(_shown(self._title, coloured=False), total=self._total, note=self._unit)
        return self

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._total = self._total if total is None else total
        text = _shown(note, coloured=False) or self._unit
        self._rich.update(self._task, completed=done, total=self._total, note=text)
        self._lines.update(done, total, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()
        self._lines.__exit__(kind, error, trace)


def duration(seconds: float) -> str:
    """Such as `4.2 s`, `3 min 20 s` or `1 h 05 min`."""
    if seconds < 59.5:
        return f"{seconds:.{int(seconds < 9.95)}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def money(usd: float, high: float | None = None) -> str:
    """A sum or a range in USD: two decimals of whole cents and of sums from 1, else four, and at least two digits."""
    most = usd if high is None else high
    whole = abs(most) >= 1 or abs(most - round(most, 2)) < 1e-12
    decimals = 2 if whole else max(4, 1 - math.floor(math.log10(abs(most))))
    low_text, high_text = f"{usd:,.{decimals}f}", f"{most:,.{decimals}f}"
    return f"USD {low_text}" if low_text == high_text else f"USD {low_text} to {high_text}"


class _Lines:
    def __init__(self, title: str, total: float | None, unit: str, say: Say = say) -> None:
        self._title, self._total, self._unit, self._say = title, total, unit, say
        self._last: tuple[float, str] | None = None
        self._samples: deque[tuple[float, float]] = deque()

    def __enter__(self) -> _Lines:
        self._started = self._spoke = time.monotonic()
        self._samples.append((self._started, 0.0))
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
        time_left = self._time_left(done)
        self._say(f"{self._title}: {done:g}{of}{unit}, {seconds:.0f} s{time_left}{', ' + note if note else ''}")

    def _time_left(self, done: float) -> str:
        """Estimated time left, at the pace of the last minute."""
        self._samples.append((self._spoke, done))
        while len(self._samples) > 2 and self._samples[0][0] < self._spoke - ETA_SECONDS:
            self._samples.popleft()
        (then, before), (now, after) = self._samples[0], self._samples[-1]
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
