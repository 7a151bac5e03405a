"""Soft targets: the student learns the teacher's distribution over the next token, beside the token it wrote.

A teacher on this machine scores the kept rows once, before the first step: one forward pass, without sampling. Of one
elsewhere, the journal has what `collect` asked for (`top_logprobs`). Hinton et al., 2015, arXiv 1503.02531; the k most
probable tokens with a bucket for all others stand for the distribution.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from distill.core import processes
from distill.core.hashing import json_sha256
from distill.errors import RecipeError
from distill.train.dataset import session_of
from distill.train.kernels.soft import SoftRows
from distill.train.mask_check import MaskRow
from distill.train.objectives.by_bytes import END, Piece, TeacherToken, of_reply
from distill.train.objectives.endpoint_scores import NoScores, elsewhere
from distill.train.objectives.soft_file import NAME, PARTS, SoftTarget, places, read, write
from distill.train.objectives.soft_source import Source, Student, Tally, origin_of
from distill.train.objectives.teacher_scores import here, scored

SAME = "same"
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
    facts: Mapping[str, Any]
    """For run.json: `targets`, the share of the trained tokens that have one; `tokenizers`, by teacher the difference
    from the student's, or `same`."""

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
    """The targets of rows, from soft_targets.arrow as far as it has them, else from local teachers, journal, endpoints.

    Rows without a target learn by cross entropy, and are counted. Raises `RecipeError` where no row has one, or where
    less than half of the teacher's probability can be mapped to the student's tokens; `ModelError` for a model,
    `StageIncomplete` where an endpoint leaves rows without scores for now.
    """
    if not processes.is_first():
        return _as_written(rows, source, weight)
    keys: list[str | None] = [None] * len(rows)
    targets: dict[str, SoftTarget] = {}
    tally = Tally(Counter())
    student = Student(source)
    differences: dict[str, str] = {}
    for name in dict.fromkeys(_teacher_of(row, source) for row in rows):
        mine = {place: row for place, row in enumerate(rows) if _teacher_of(row, source) == name}
        for found, at in _of_teacher(name, mine, student, tally, differences):
            targets |= found
            for place, key in at.items():
                keys[place] = key
    if targets:
        origins = {
            key: origin_of(row, _teacher_of(row, source) or "", source.train_on)
            for key, row in zip(keys, rows, strict=True)
            if key is not None
        }
        write(source.folder / NAME, targets, origins)
        shutil.rmtree(source.folder / PARTS, ignore_errors=True)
    covered = _report(rows, keys, targets, tally, source.say)
    return _of_rows(rows, source, weight, keys, targets, {"targets": covered, "tokenizers": differences})


def _as_written(rows: Sequence[MaskRow], source: Source, weight: float) -> SoftTargets:
    """What the first process has written: only that one has the run's journal."""
    known = places(source.folder / NAME)
    origins = [origin_of(row, "", source.train_on) for row in rows]
    keys = [known.get((one.session, one.tokens.tobytes())) for one in origins]
    targets = read(source.folder / NAME, {key for key in keys if key is not None})
    return _of_rows(rows, source, weight, keys, targets, {})


def _of_rows(
    rows: Sequence[MaskRow],
    source: Source,
    weight: float,
    keys: Sequence[str | None],
    targets: Mapping[str, SoftTarget],
    facts: Mapping[str, Any],
) -> SoftTargets:
    digest = json_sha256([weight, source.k, keys])
    found = [None if key is None else targets[key] for key in keys]
    return SoftTargets(found, [row.example.trained for row in rows], weight, source.k, digest, facts)


def _teacher_of(row: MaskRow, source: Source) -> str | None:
    name = source.sessions[session_of(row.id)].meta.get("teacher")
    return name if isinstance(name, str) else None


_Part: TypeAlias = tuple[dict[str, SoftTarget], dict[int, str]]
"""Targets by key, and the key of each place."""


def _of_teacher(
    name: str | None, rows: Mapping[int, MaskRow], student: Student, tally: Tally, differences: dict[str, str]
) -> Iterator[_Part]:
    """The targets of a teacher's rows; what its journal lacks, its endpoint scores where it can."""
    source = student.source
    if name is not None and name in source.teachers:
        teacher = here(name, source)
        differences[name] = teacher.difference or SAME
        yield scored(teacher, rows, student, tally)
        return
    found, keys, silent = _journalled(rows, student, tally)
    yield found, keys
    if not silent:
        return
    other = elsewhere(name, source) if name is not None else None
    if other is None:
        tally.lost["whose answer came without top_logprobs"] += len(silent)
        return
    differences[other.name] = other.difference or SAME
    try:
        yield scored(other, silent, student, tally)
    except NoScores as error:
        tally.lost[f"whose answer came without top_logprobs, and {error}"] += len(silent)


def _journalled(
    rows: Mapping[int, MaskRow], student: Student, tally: Tally
) -> tuple[dict[str, SoftTarget], dict[int, str], dict[int, MaskRow]]:
    """The targets of rows whose answers were collected with `top_logprobs`, by key; and the rows of all others."""
    targets, keys, silent, source = {}, {}, {}, student.source
    for place, row in rows.items():
        asked = source.sessions[session_of(row.id)].meta.get("keys") or ()
        replies = [of_reply(raw) for key in asked if (raw := source.collected.reply(str(key))) is not None]
        replies = [reply for reply in replies if reply]
        if not replies:
            silent[place] = row
            continue
        shown = {message.content for message in row.messages if message.role == "system"}
        tally.unseen += not shown.issuperset(source.collected.systems([str(key) for key in asked]))
        answers = [_reply_of(pieces, replies) for pieces in student.answers(row)]
        key = json_sha256([row.id, row.example.input_ids, row.example.labels, list(asked), source.k])
        targets[key], keys[place] = student.mapped(row, answers), key
    return targets, keys, silent


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
) -> float:
    """Say how much of the training has targets, and return that share.

    Raises `RecipeError` where it is nothing, or where too little of the mass is mapped.
    """
    used = [targets[key] for key in keys if key is not None]
    reasons = "; ".join(f"{count} rows {reason}" for reason, count in tally.lost.items() if count)
    tails = np.concatenate([one.tail for one in used] or [np.zeros(0)]).astype(np.float32)
    known = tails[~np.isnan(tails)]
    if not len(known):
        raise RecipeError(
            f"train.objective soft: no row has soft targets ({reasons or 'no answer was found in its reply'}): let the"
            " teacher run here (`serve`), collect with teacher.sampling: {logprobs: true, top_logprobs: 20}, have its"
            " tokenizer on this machine where its server scores texts, or take `kind: sft`"
        )
    reported, spelt, unsound = (sum(getattr(one, name) for one in used) for name in ("reported", "spelt", "unsound"))
    share = spelt / reported if reported else 1.0
    if share < LEAST_MAPPED:
        raise RecipeError(
            f"train.objective soft: only {share:.0%} of the teacher's probability lies on tokens that the student has "
            "too; take a student with a tokenizer nearer to the teacher's, or `kind: sft`"
        )
    total = sum(row.example.trained for row in rows)
    by_bytes = f"; {share:.1%} of what the teacher reported is spelt by the student's tokens" if reported else ""
    rest = f"; the rest learns by cross entropy: {reasons}" if reasons else ""
    if unsound:
        rest += f"; {unsound} tokens came with no distribution (sentinels, nulls, masses above 1)"
    if tally.unseen:
        rest += f"; in {tally.unseen} rows the teacher saw a system turn that the student does not see"
    say(
        f"soft targets: {len(known) / total:.0%} of the trained tokens have one, which holds "
        f"{1 - np.exp(known).mean():.1%} of the probability{by_bytes}{rest}"
    )
    return len(known) / total
