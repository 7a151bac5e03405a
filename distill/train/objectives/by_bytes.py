"""Maps a teacher's token probabilities to a student's tokens by their bytes, where both have a boundary in an answer.

So an API that names its tokens' bytes can teach any student, and so can a local teacher of another tokenizer. What no
student token spells goes into the bucket of all others, and a student token that begins inside a teacher's has no
target. Two errors are accepted: a teacher token that the student spells in several is in the bucket, though its mass is
known to begin with a certain student token; and a shorter teacher token may be the beginning of longer student tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar

import numpy as np

from distill.models.token_bytes import Spelling
from distill.train.objectives.soft_file import SoftTarget, target_of

END = None
"""In place of bytes: the token that ends an answer, whatever it is called."""
Piece: TypeAlias = bytes | None
SENTINEL = -9000.0
"""Log-probabilities below say "not reported": OpenAI writes -9999.0."""
MOST_MASS = 1.01
"""Sum of probabilities above which a report is no distribution."""


@dataclass(frozen=True, slots=True)
class TeacherToken:
    """One token of the teacher's answer with what else it might have been."""

    text: Piece
    entries: Sequence[tuple[Piece, float]]
    """Alternatives and their log-probabilities in nats, the token itself among them where it was reported."""


def vocabulary(tokenizer: Any, end: int) -> dict[Piece, int]:
    """The id of each spelling in the student's vocabulary, special tokens left out but for the answer's `end`."""
    special, ids = set(tokenizer.all_special_ids), range(len(tokenizer))
    pieces = Spelling(tokenizer).pieces(ids)
    found: dict[Piece, int] = {}
    for id_, piece in zip(ids, pieces, strict=True):
        if piece and id_ not in special:
            found.setdefault(piece, id_)
    return {**found, END: end}


def of_reply(raw: Mapping[str, Any]) -> list[TeacherToken]:
    """The tokens of a chat completion as OpenAI's API reports them; empty where it holds no log-probabilities."""
    try:
        content = raw["choices"][0]["logprobs"]["content"] or ()
        return [TeacherToken(_bytes(one), list(_entries(one))) for one in content]
    except (KeyError, IndexError, TypeError, ValueError):
        return []


def _bytes(token: Mapping[str, Any]) -> bytes:
    """`bytes` may be null; the token's text then stands for itself, where it is no half of a character."""
    spelt = token.get("bytes")
    return bytes(spelt) if spelt is not None else str(token["token"]).encode()


def _entries(token: Mapping[str, Any]) -> Iterator[tuple[Piece, float]]:
    for one in (token, *(token.get("top_logprobs") or ())):
        yield _bytes(one), float(one["logprob"])


def mapped(tokens: Sequence[TeacherToken], pieces: Sequence[Piece], ids: Mapping[Piece, int], k: int) -> SoftTarget:
    """Targets for the student's tokens of one answer, spelt by `pieces`; NaN where no boundary or spelling is shared.

    The answer may be a part of what the teacher wrote; one that stands there twice has no targets, as either may be
    meant. `k` is the most entries kept of a token.
    """
    starts = _starts(tokens, b"".join(piece for piece in pieces if piece is not END))
    offsets = accumulate((len(piece or b"") for piece in pieces[:-1]), initial=0)
    there = [starts.get((offset, piece is END)) for offset, piece in zip(offsets, pieces, strict=True)]
    found = [_target(token, ids, k) for token in there]
    reported = [one for one in found if one is not None]
    return target_of(
        [{} if one is None else one[0] for one in found],
        k,
        reported=sum(mass for _, mass, _ in reported),
        spelt=sum(mass for _, _, mass in reported),
        unsound=sum(token is not None for token in there) - len(reported),
    )


def _starts(tokens: Sequence[TeacherToken], answer: bytes) -> dict[tuple[int, bool], TeacherToken]:
    """By offset in the answer and whether it is the answer's end, the teacher's token that begins there."""
    text = b"".join(token.text for token in tokens if token.text is not END)
    begin = text.find(answer) if answer else -1
    if begin < 0 or text.rfind(answer) != begin:
        return {}
    found: dict[tuple[int, bool], TeacherToken] = {}
    place = -begin
    for token in tokens:
        if token.text is END and place == len(answer):
            found[place, True] = token
        elif 0 <= place < len(answer):
            found[place, False] = token
        place += len(token.text or b"")
    return found


def _target(
    token: TeacherToken | None, ids: Mapping[Piece, int], k: int
) -> tuple[dict[int, float], float, float] | None:
    """Log-probabilities by student id, the reported mass, and what of it student tokens spell, before k cuts it.

    None where the report is no distribution.
    """
    if token is None or not (best := distribution(token.entries)):
        return None
    known = {ids[piece]: logprob for piece, logprob in best.items() if piece in ids}
    reported, spelt = (float(np.exp(list(one.values())).sum()) for one in (best, known))
    return best_of(known, ids.get(token.text), k), reported, spelt


Key = TypeVar("Key")


def distribution(entries: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """The log-probabilities in falling order, sentinels left out; empty where they are no distribution."""
    by_key = {key: min(logprob, 0.0) for key, logprob in entries if SENTINEL < logprob <= 1e-3}
    mass = float(np.exp(list(by_key.values())).sum()) if by_key else 0.0
    if not 0 < mass <= MOST_MASS or (len(by_key) > 1 and len(set(by_key.values())) == 1):
        return {}
    return dict(sorted(by_key.items(), key=lambda one: -one[1]))


def best_of(entries: Mapping[int, float], own: int | None, k: int) -> dict[int, float]:
    """The first k entries, with the answer's own token in place of the k-th where it is not among them."""
    first = dict(list(entries.items())[:k])
    if own is None or own in first or own not in entries:
        return first
    return {**dict(list(first.items())[: k - 1]), own: entries[own]}
