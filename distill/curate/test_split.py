"""The rule `test_split`: holds out test prompts, and drops training rows near them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill.core.hashing import hash_share
from distill.curate.filters import MOST_COMPARED, both_ends, prompt_of
from distill.curate.rows import MeasuredRow
from distill.text.prompt_frames import LEAST_PROMPTS, FramedText, PromptFrames, PromptIndex
from distill.text.rouge_index import Neighbour
from distill.text.tokens import normalise
from distill.types import Session, Verdict

RULE = "test_split"
NEAR = "near_held_out"
"""Reason of a verdict that keeps a row near a held-out one, because no other row is left."""
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
    fewer than `test` rows. A prompt near one already held out stays on the training side, where `drop_near` drops it;
    the frames that do not count for that are those of the first 10, 20, 40 … prompts, as many as come before.
    """
    held: list[Session] = []
    index = _Prompts(PromptFrames(), near)
    known = LEAST_PROMPTS
    for place, session in enumerate(sessions):
        if len(held) == test:
            break
        if place == known:
            known *= 2
            index = _Prompts(PromptFrames(prompt_of(one) for one in sessions[:place]), near, held)
        if hash_share(f"{seed}:{normalise(prompt_of(session))}") < 0.5 and index.near(session) is None:
            index.add(session)
            held.append(session)
    return {session.id for session in held}


class _Prompts:
    """The held-out prompts; a prompt that differs only in case and white space is near, whatever its tokens."""

    def __init__(self, frames: PromptFrames, near: float, held: Iterable[Session] = ()) -> None:
        self._frames = frames
        self._index = PromptIndex(near)
        self._equal: dict[str, str] = {}
        for session in held:
            self.add(session)

    def add(self, session: Session) -> None:
        self._index.add(session.id, self._text(prompt_of(session)))
        self._equal[normalise(prompt_of(session))] = session.id

    def near(self, session: Session) -> Neighbour | None:
        if not self._equal:
            return None
        prompt = prompt_of(session)
        if (equal := self._equal.get(normalise(prompt))) is not None:
            return Neighbour(equal, 1.0)
        return self._index.near(self._text(prompt))

    def _text(self, prompt: str) -> FramedText:
        text, frame = self._frames.without(prompt)
        return FramedText(both_ends(text, MOST_COMPARED), frame)


def drop_near(
    training: Sequence[MeasuredRow], test_rows: Iterable[MeasuredRow], near: float, frames: PromptFrames
) -> None:
    """Drop training rows near a held-out prompt; if no other row is left, keep them, labelled `NEAR`."""
    index = _Prompts(frames, near, [row.session for row in test_rows])
    kept = [row for row in training if row.is_kept]
    neighbours = [(row, neighbour) for row in kept if (neighbour := index.near(row.session)) is not None]
    stay = len(neighbours) == len(kept)
    for row, neighbour in neighbours:
        verdict = Verdict(
            rule=RULE,
            keep=stay,
            reason=NEAR if stay else "held_out",
            value=neighbour.rouge_l,
            threshold=near,
            neighbour=neighbour.id,
        )
        row.add(verdict)
