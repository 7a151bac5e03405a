"""Splits off the held-out test prompts, and drops training rows near them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill.core.hashing import hash_share
from distill.curate.filters import MOST_COMPARED, both_ends, prompt_of
from distill.curate.rows import MeasuredRow
from distill.text.rouge_index import Neighbour, NoveltyIndex
from distill.text.tokens import normalise
from distill.types import Session, Verdict

IMPORTED = "imported"
"""Key in the meta of a session from a recipe's sources: the name of the source."""


def candidates(rows: Sequence[MeasuredRow]) -> list[Session]:
    """The kept sessions that may be held out: those of this run's teacher, or imported ones where there are none.

    So compare measures the student against the teacher, not against the author of a source.
    """
    collected = [row for row in rows if IMPORTED not in row.session.meta]
    return [row.session for row in collected or rows if row.is_kept]


def held_out(sessions: Sequence[Session], *, test: int, seed: int, near: float) -> set[str]:
    """Ids of the sessions to hold out: the first `test` in task order whose prompt falls on the test side.

    A prompt falls there when the SHA-256 of seed and normalised prompt begins with a 0 bit, whatever else is in the
    set. So appended tasks move no row between the sides, and at most about half of a small set is held out, perhaps
    fewer than `test` rows. A prompt near one already held out stays on the training side, where `drop_near` drops it.
    """
    ids: set[str] = set()
    index = _Prompts(near)
    for session in sessions:
        if len(ids) == test:
            break
        prompt = prompt_of(session)
        if hash_share(f"{seed}:{normalise(prompt)}") < 0.5 and index.near(prompt) is None:
            index.add(session.id, prompt)
            ids.add(session.id)
    return ids


class _Prompts:
    """The held-out prompts; a prompt that differs only in case and white space is near, whatever its tokens."""

    def __init__(self, near: float) -> None:
        self._index = NoveltyIndex(near)
        self._equal: dict[str, str] = {}

    def add(self, id: str, prompt: str) -> None:
        self._index.add(id, _compared(prompt))
        self._equal[normalise(prompt)] = id

    def near(self, prompt: str) -> Neighbour | None:
        if not self._equal:
            return None
        if (equal := self._equal.get(normalise(prompt))) is not None:
            return Neighbour(equal, 1.0)
        return self._index.near(_compared(prompt))


def _compared(prompt: str) -> str:
    return both_ends(prompt, MOST_COMPARED)


def drop_near(training: Iterable[MeasuredRow], test_rows: Iterable[MeasuredRow], near: float) -> None:
    """Drop training rows near a held-out prompt."""
    index = _Prompts(near)
    for row in test_rows:
        index.add(row.session.id, prompt_of(row.session))
    for row in training:
        if row.is_kept and (neighbour := index.near(prompt_of(row.session))) is not None:
            verdict = Verdict(
                rule="test_split",
                keep=False,
                reason="held_out",
                value=neighbour.rouge_l,
                threshold=near,
                neighbour=neighbour.id,
            )
            row.add(verdict)
