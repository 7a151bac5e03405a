"""Maps a teacher's token probabilities to a student's tokens by their bytes, where both have a boundary in an answer.

So an API that names its tokens' bytes can teach any student, and so can a local teacher of another tokenizer. What no
student token spells goes into the bucket of all others, and a student token that begins inside a teacher's has no
target. Two errors are accepted: a teacher token that the student spells in several is in the bucket, though its mass is
known to begin with a certain student token; and a shorter teacher token may be the beginning of longer student tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from distill.models.token_bytes import Spelling
from distill.train.kernels.soft import PADDING
from distill.train.objectives.soft_file import SoftTarget

END = None
"""In place of bytes: the token that ends an answer, whatever it is called."""
Piece: TypeAlias = bytes | None
SENTINEL = -9000.0
"""Log-probabilities below say "not reported": OpenAI writes -9999.0."""


@dataclass(frozen=True, slots=True)
class TeacherToken:
    """One token of the teacher's answer with what else it might have been."""

    text: Piece
    entries: Sequence[tuple[Piece, float]]
    """Alternatives and their log-probabilities in nats, the token itself among them where it was reported."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of an answer could be mapped."""

    tokens: int
    """Student's tokens with a target."""
    reported: float
    """Sum over all shared boundaries of the probability that the teacher reported."""
    mapped: float
    """Sum of what student tokens spell."""


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
        logprob = float(one["logprob"])
        if SENTINEL < logprob <= 1e-3:
            yield _bytes(one), min(logprob, 0.0)


def mapped(
    tokens: Sequence[TeacherToken], pieces: Sequence[Piece], ids: Mapping[Piece, int], k: int
) -> tuple[SoftTarget, Coverage]:
    """Targets for the student's tokens of one answer, spelt by `pieces`; NaN where no boundary or spelling is shared.

    The answer may be a part of what the teacher wrote; one that stands there twice has no targets, as either may be
    meant. `k` is the most entries kept of a token.
    """
    starts = _starts(tokens, b"".join(piece for piece in pieces if piece is not END))
    offsets = accumulate((len(piece or b"") for piece in pieces[:-1]), initial=0)
    found = [_target(starts.get((offset, piece is END)), ids, k) for offset, piece in zip(offsets, pieces, strict=True)]
    reported = [one for one in found if one is not None]
    entries_of = [{} if one is None else one[0] for one in found]
    rows = [_line(one, k) for one in entries_of]
    tail = np.array([_rest(one) if one else np.nan for one in entries_of], np.float16)
    entries = SoftTarget(
        np.array([line[0] for line in rows], np.int32).reshape(-1, k),
        np.array([line[1] for line in rows], np.float16).reshape(-1, k),
        tail,
    )
    sums = [np.exp(list(one.values())).sum() for one in entries_of if one]
    return entries, Coverage(len(sums), float(sum(mass for _, mass in reported)), float(sum(sums)))


def _starts(tokens: Sequence[TeacherToken], answer: bytes) -> dict[tuple[int, bool], TeacherToken]:
    """By offset in the answer and whether it is the answer's end, the teacher's token that begins there."""
    text = b"".join(token.text for token in tokens if token.text is not END)
    begin = text.find(answer) if answer else -1
    if begin < 0 or text.rfind(answer) != begin:
        return {}
    found: dict[tuple[int, bool], TeacherToken] = {}
    place = -begin
    for token in tokens:
        if token.text is END:
            found[len(answer), True] = token
        elif 0 <= place < len(answer):
            found[place, False] = token
        place += len(token.text or b"")
    return found


def _target(token: TeacherToken | None, ids: Mapping[Piece, int], k: int) -> tuple[dict[int, float], float] | None:
    """Log-probabilities by student id and the reported mass; None where the report is no distribution."""
    if token is None:
        return None
    by_piece = dict(token.entries)
    mass = float(np.exp(list(by_piece.values())).sum()) if by_piece else 0.0
    if not 0 < mass <= 1.01 or (len(by_piece) > 1 and len(set(by_piece.values())) == 1):
        return None
    best = sorted(by_piece.items(), key=lambda one: -one[1])
    known = [(ids[piece], logprob) for piece, logprob in best if piece in ids][:k]
    return dict(known), mass


def _line(entries: Mapping[int, float], k: int) -> tuple[list[int], list[float]]:
    """The entries with padding up to `k`: ids of the first one again, which counts once."""
    ids, logprobs = list(entries) or [0], list(entries.values()) or [PADDING]
    short = k - len(ids)
    return ids + [ids[0]] * short, logprobs + [PADDING] * short


def _rest(entries: Mapping[int, float]) -> float:
    """Log of the probability that the entries leave out, at least float16's smallest step below 1."""
    left = 1 - float(np.exp(list(entries.values())).sum())
    return float(np.log(max(left, 1e-6)))
