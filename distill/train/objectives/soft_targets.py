"""Soft targets: the student learns the teacher's distribution over the next token, beside the token it wrote.

A teacher on this machine scores the kept rows once, before the first step: one forward pass, without sampling. Of one
elsewhere, the journal has what `collect` asked for (`top_logprobs`). Hinton et al., 2015, arXiv 1503.02531; the k most
probable tokens with a bucket for all others stand for the distribution.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill.core import processes
from distill.core.hashing import json_sha256
from distill.errors import RecipeError
from distill.train.dataset import session_of
from distill.train.kernels.soft import SoftRows
from distill.train.mask_check import MaskRow
from distill.train.objectives import teacher_scores
from distill.train.objectives.by_bytes import END, Piece, TeacherToken, of_reply
from distill.train.objectives.soft_file import NAME, PARTS, SoftTarget, write
from distill.train.objectives.soft_source import Source, Student, Tally

LEAST_MAPPED = 0.5
"""Share of the teacher's probability below which a student's tokens are too unlike the teacher's."""


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """The targets of a run's examples."""

    rows: Sequence[SoftTarget | None]
    """By example; None where a row has none."""
    trained: Sequence[int]
    """Trained tokens of each example."""
    weight: float
    k: int
    sha256: str
    """Of what they were made from, for the identity of a training."""

    def of(self, group: Sequence[int]) -> SoftRows:
        """The targets of the trained tokens of these examples, one example after the other."""
        return SoftRows.cat([self._tensors(row) for row in group])

    def _tensors(self, row: int) -> SoftRows:
        target = self.rows[row]
        if target is None:
            return _none(self.trained[row], self.k)
        ids, logprobs, tail = (torch.from_numpy(part.copy()) for part in (target.ids, target.logprobs, target.tail))
        known = ~tail.isnan()
        weights = torch.where(known, self.weight, 0.0)
        return SoftRows(ids.long(), logprobs.float().nan_to_num(), tail.float().nan_to_num(), weights)


def _none(tokens: int, k: int) -> SoftRows:
    ids = torch.arange(k).expand(tokens, k)
    return SoftRows(ids, torch.zeros(tokens, k), torch.zeros(tokens), torch.zeros(tokens))


def prepare(rows: Sequence[MaskRow], source: Source, *, weight: float) -> SoftTargets:
    """The targets of rows, from soft_targets.arrow as far as it has them, else from local teachers and the journal.

    Rows without a target learn by cross entropy, and are counted. Raises `RecipeError` where no row has one, or where
    less than half of the teacher's probability can be mapped to the student's tokens; `ModelError` for a model.
    """
    keys: list[str | None] = [None] * len(rows)
    targets: dict[str, SoftTarget] = {}
    tally = Tally(Counter())
    student = Student(source)
    for name in dict.fromkeys(_teacher_of(row, source) for row in rows):
        mine = {place: row for place, row in enumerate(rows) if _teacher_of(row, source) == name}
        if name is not None and name in source.teachers:
            found, scored = teacher_scores.scored(teacher_scores.ready(name, source), mine, student, tally)
        else:
            found, scored = _journalled(mine, student, tally)
        targets |= found
        for place, key in scored.items():
            keys[place] = key
    if targets and processes.is_first():
        write(source.folder / NAME, targets)
        shutil.rmtree(source.folder / PARTS, ignore_errors=True)
    _report(rows, keys, targets, tally, source.say)
    digest = json_sha256([weight, source.k, keys])
    found_rows = [None if key is None else targets[key] for key in keys]
    return SoftTargets(found_rows, [row.example.trained for row in rows], weight, source.k, digest)


def _teacher_of(row: MaskRow, source: Source) -> str | None:
    name = source.sessions[session_of(row.id)].meta.get("teacher")
    return name if isinstance(name, str) else None


def _journalled(
    rows: Mapping[int, MaskRow], student: Student, tally: Tally
) -> tuple[dict[str, SoftTarget], dict[int, str]]:
    """The targets of rows whose answers were collected with `top_logprobs`, by key, and the key of each place."""
    targets, keys, source = {}, {}, student.source
    for place, row in rows.items():
        asked = source.sessions[session_of(row.id)].meta.get("keys") or ()
        replies = [of_reply(raw) for key in asked if (raw := source.reply(str(key))) is not None]
        replies = [reply for reply in replies if reply]
        if not replies:
            tally.lost["whose answer came without top_logprobs"] += 1
            continue
        answers = [_reply_of(pieces, replies) for pieces in student.answers(row)]
        key = json_sha256([row.id, row.example.input_ids, row.example.labels, list(asked), source.k])
        targets[key], keys[place] = student.mapped(row, answers, tally), key
    return targets, keys


def _reply_of(pieces: Sequence[Piece], replies: Sequence[Sequence[TeacherToken]]) -> Sequence[TeacherToken]:
    """The reply that an answer was cut out of, else none."""
    answer = b"".join(piece for piece in pieces if piece is not END)
    texts = (b"".join(token.text or b"" for token in reply) for reply in replies)
    return next((reply for reply, text in zip(replies, texts, strict=True) if answer in text), ())


def _report(
    rows: Sequence[MaskRow],
    keys: Sequence[str | None],
    targets: Mapping[str, SoftTarget],
    tally: Tally,
    say: Callable[[str], None],
) -> None:
    """Say how much of the training has targets. Raises `RecipeError` where it is nothing, or too little of the mass."""
    reasons = "; ".join(f"{count} rows {reason}" for reason, count in tally.lost.items() if count)
    tails = np.concatenate([targets[key].tail for key in keys if key is not None] or [np.zeros(0)]).astype(np.float32)
    known = tails[~np.isnan(tails)]
    if not len(known):
        raise RecipeError(
            f"train.objective soft: no row has soft targets ({reasons or 'no answer was found in its reply'}): let the"
            " teacher run here (`serve`), collect with teacher.sampling: {logprobs: true, top_logprobs: 20}, or take"
            " `kind: sft`"
        )
    share = tally.mapped / tally.reported if tally.reported else 1.0
    if share < LEAST_MAPPED:
        raise RecipeError(
            f"train.objective soft: only {share:.0%} of the teacher's probability lies on tokens that the student has "
            "too; take a student with a tokenizer nearer to the teacher's, or `kind: sft`"
        )
    total = sum(row.example.trained for row in rows)
    by_bytes = f"; {share:.1%} of what the teacher reported is spelt by the student's tokens" if tally.reported else ""
    rest = f"; the rest learns by cross entropy: {reasons}" if reasons else ""
    say(
        f"soft targets: {len(known) / total:.0%} of the trained tokens have one, which holds "
        f"{1 - np.exp(known).mean():.1%} of the probability{by_bytes}{rest}"
    )
