"""Takes out of the kept sessions those that training is watched by; loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from hashlib import sha256

from distill.errors import DistillError
from distill.novelty import NoveltyIndex, comparable
from distill.student.examples import Examples, session_of
from distill.text import normalise
from distill.types import Session

NEAR = 0.7
"""ROUGE-L of two questions above which they count as one; that of the test split."""
SHARE, LEAST, MOST, LEAST_SESSIONS = 0.05, 4, 64, 40
"""Of the sessions, where the recipe does not say."""
CHOICE = 4


def rows_to_hold(asked: int | None, sessions: int) -> int:
    """How many sessions are held out."""
    if asked is not None:
        return asked
    return 0 if sessions < LEAST_SESSIONS else min(max(int(sessions * SHARE), LEAST), MOST)


def hold_out(
    sessions: Sequence[Session], rows: int, *, seed: int, eligible: Collection[str]
) -> tuple[list[Session], set[str]]:
    """The sessions to hold out of the eligible ones, in their order, and the ids of others near to them.

    Those are not to be trained on either: it would show how well an answer was learnt by heart. Which ones are held
    out depends on the seed and their questions; of `CHOICE` times as many candidates, those with the fewest near ones.
    """
    if not rows:
        return [], set()
    tokens = {session.id: comparable(_question(session)) for session in sessions}
    order = sorted((one for one in sessions if one.id in eligible), key=lambda one: _digest(one, seed))
    candidates = _apart(order, tokens, CHOICE * rows)
    index = _index(candidates, tokens)
    near = Counter(found.id for session in sessions if (found := index.near(tokens[session.id])) is not None)
    held = set(sorted(candidates, key=lambda id_: near[id_])[:rows])
    index = _index(sorted(held), tokens)
    beside = {id_ for id_ in tokens if id_ not in held and index.near(tokens[id_]) is not None}
    return [session for session in sessions if session.id in held], beside


def _apart(order: Sequence[Session], tokens: dict[str, list[str]], most: int) -> list[str]:
    """The first ids whose questions are not near to each other's."""
    index = NoveltyIndex(NEAR)
    found: list[str] = []
    for session in order:
        if len(found) < most and index.near(tokens[session.id]) is None:
            index.add(session.id, tokens[session.id])
            found.append(session.id)
    return found


def _index(ids: Sequence[str], tokens: dict[str, list[str]]) -> NoveltyIndex:
    index = NoveltyIndex(NEAR)
    for id_ in ids:
        index.add(id_, tokens[id_])
    return index


def _digest(session: Session, seed: int) -> bytes:
    return sha256(f"watch:{seed}:{normalise(_question(session))}".encode()).digest()


def _question(session: Session) -> str:
    return next((message.content for message in session.messages if message.role == "user"), "")


def parted(
    found: Examples, sessions: Sequence[Session], asked: int | None, seed: int
) -> tuple[Examples, list[Session]]:
    """What is trained on, and the sessions that are held out to watch it by.

    Raises `DistillError` where nothing is left to train on.
    """
    ids = set(found.ids)
    usable = [session for session in sessions if session.id in ids]
    rows = rows_to_hold(asked, len(usable))
    held, beside = hold_out(sessions, rows, seed=seed, eligible=ids)
    apart = {session.id for session in held} | beside
    places = [place for place, id_ in enumerate(found.ids) if not {id_, session_of(id_)} & apart]
    if not places:
        raise DistillError(f"train.eval_rows={rows} leaves none of {len(usable)} sessions to train on; lower it")
    taught = replace(found, ids=[found.ids[at] for at in places], examples=[found.examples[at] for at in places])
    return taught, held
