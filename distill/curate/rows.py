"""Applies the row filters to every session, in this process or in a pool."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from distill.core import console, processes
from distill.types import AskingFilter, Message, Pair, RowFilter, Session, Verdict

Rules: TypeAlias = Sequence[tuple[str, RowFilter]]

MANY_CHARACTERS = 10_000_000
"""Text size from which worker processes pay for their start: two save 1.5 s of 3 to 10."""
MOST_PROCESSES = 4
"""With more, the serial part dominates; each needs some 100 MB."""
CHUNK_CHARACTERS, CHUNK_ROWS = 400_000, 500
"""Most characters and rows sent to a process at once, except for a single longer row."""
AHEAD = 3
"""Chunks in flight per process: less than 10 MB is copied at a time."""

Packed: TypeAlias = tuple[str, list[tuple[str, str]], Any, tuple[str, str] | None]
"""A session, or a pair with its rejected turn, as plain values, which take a fifth of the time to pickle."""
VERDICT_FIELDS = ("keep", "reason", "value", "threshold", "neighbour", "note")
PackedVerdicts: TypeAlias = tuple[list[tuple[Any, ...]], list[str], Packed | None]
"""A row's verdicts as values of these fields, the rules that changed its session, and the changed session."""


@dataclass(slots=True)
class MeasuredRow:
    """One session with the verdicts so far."""

    session: Session
    verdicts: list[Verdict] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    """The rules that changed the session."""
    is_kept: bool = True
    """Whether no rule has dropped it so far."""

    @property
    def labels(self) -> list[str]:
        """Reasons other than `ok` of the verdicts that keep the row."""
        return list(dict.fromkeys(one.reason for one in self.verdicts if one.keep and one.reason != "ok"))

    def add(self, verdict: Verdict) -> None:
        """Record one verdict."""
        self.verdicts.append(verdict)
        self.is_kept = self.is_kept and verdict.keep

    def take(self, name: str, rule: RowFilter | AskingFilter, value: Any) -> None:
        """Record the rule's verdict on the value, and replace the session by the rule's mended one."""
        verdict = rule.decide(value)
        self.add(verdict if verdict.rule == name else replace(verdict, rule=name))
        mend = getattr(rule, "mend", None)
        if mend is not None and (session := mend(self.session, value)) != self.session:
            self.session = session
            self.mended.append(name)


def sift(rows: Sequence[MeasuredRow], rules: Rules, *, processes: int | None = None) -> None:
    """Apply every rule, in order, to every row, dropped or not; changes the rows in place.

    `processes` share the work; when left out, one for little text, else one per core up to `MOST_PROCESSES`. The
    verdicts do not depend on their number. If a rule cannot be pickled, all run in this process. Raises what the rules
    raise.
    """
    if not rules or not rows:
        return
    processes = _useful_processes(rows) if processes is None else processes
    with console.progress("curate: rules on each row", len(rows)) as bar:
        if processes > 1 and _can_be_pickled(rules):
            _in_processes(rows, rules, processes, bar)
        else:
            _in_this_process(rows, rules, bar, done=0)


def _useful_processes(rows: Sequence[MeasuredRow]) -> int:
    characters = sum(len(message.content) for row in rows for message in row.session.messages)
    return min(processes.cores(), MOST_PROCESSES) if characters >= MANY_CHARACTERS else 1


def _can_be_pickled(rules: Rules) -> bool:
    try:
        pickle.dumps(rules)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _in_this_process(rows: Sequence[MeasuredRow], rules: Rules, bar: console.Progress, *, done: int) -> None:
    for chunk in _chunks(rows[done:]):
        _judge(chunk, rules)
        done += len(chunk)
        bar.update(done)


def _judge(rows: Sequence[MeasuredRow], rules: Rules) -> None:
    """Rule by rule, so that each rule's tables stay in the core's cache."""
    for name, rule in rules:
        for row in rows:
            row.take(name, rule, rule.measure(row.session))


def _chunks(rows: Sequence[MeasuredRow]) -> Iterator[Sequence[MeasuredRow]]:
    start = characters = 0
    for place, row in enumerate(rows):
        if place - start == CHUNK_ROWS or (characters >= CHUNK_CHARACTERS and place > start):
            yield rows[start:place]
            start, characters = place, 0
        characters += sum(len(message.content) for message in row.session.messages)
    yield rows[start:]


# --- with worker processes


def _in_processes(rows: Sequence[MeasuredRow], rules: Rules, processes: int, bar: console.Progress) -> None:
    """Sends and receives chunks in the rows' order; if a process dies, the rest is measured in this one."""
    done = 0
    try:
        for chunk, reply in _results(rows, rules, processes):
            for row, one in zip(chunk, reply, strict=True):
                _unpack_into(row, one, rules)
            done += len(chunk)
            bar.update(done)
    except BrokenProcessPool:
        console.warn("curate: a process that measured rows has died, perhaps out of memory; going on without it")
        _in_this_process(rows, rules, bar, done=done)


def _results(
    rows: Sequence[MeasuredRow], rules: Rules, count: int
) -> Iterator[tuple[Sequence[MeasuredRow], list[PackedVerdicts]]]:
    futures: deque[tuple[Sequence[MeasuredRow], Future[list[PackedVerdicts]]]] = deque()
    with processes.pool(count, _begin, rules) as pool:
        for chunk in _chunks(rows):
            with _interrupts_held():
                futures.append((chunk, pool.submit(_verdicts_of, [_pack(row.session) for row in chunk])))
            if len(futures) >= AHEAD * count:
                yield futures[0][0], futures.popleft()[1].result()
        while futures:
            yield futures[0][0], futures.popleft()[1].result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C for processes started in the block: a terminal sends it to all, and this process ends the others."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pack(session: Session) -> Packed:
    turns = [(message.role, message.content) for message in session.messages]
    rejected = (session.rejected.role, session.rejected.content) if isinstance(session, Pair) else None
    return session.id, turns, session.meta, rejected


def _unpack(packed: Packed) -> Session:
    id, turns, meta, rejected = packed
    messages = tuple(Message(role, content) for role, content in turns)
    return Session(id, messages, meta) if rejected is None else Pair(id, messages, meta, rejected=Message(*rejected))


def _unpack_into(row: MeasuredRow, packed: PackedVerdicts, rules: Rules) -> None:
    verdicts, row.mended, mended = packed
    for (name, _), values in zip(rules, verdicts, strict=True):
        row.add(Verdict(rule=name, **dict(zip(VERDICT_FIELDS, values, strict=True))))
    if mended is not None:
        row.session = _unpack(mended)


# --- in the worker processes

_RULES: list[tuple[str, RowFilter]] = []
"""Set in worker processes only."""


def _begin(rules: Rules) -> None:
    """Set the rules, and make this process end when its parent does, for any reason."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for numpy, which rules load: each core has its own process
    _RULES[:] = rules
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _verdicts_of(packed: Sequence[Packed]) -> list[PackedVerdicts]:
    rows = [MeasuredRow(_unpack(one)) for one in packed]
    _judge(rows, _RULES)
    return [
        (
            [tuple(getattr(verdict, field) for field in VERDICT_FIELDS) for verdict in row.verdicts],
            row.mended,
            _pack(row.session) if row.mended else None,
        )
        for row in rows
    ]
