"""Scores rows with a teacher: its most probable tokens at every token that is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from distill.core import console
from distill.core.hashing import json_sha256
from distill.core.weights import fingerprint
from distill.errors import DistillError, one_line
from distill.models import chat_template, loading, tokenizer_identity
from distill.models.chat_template import IGNORED, Example
from distill.models.device import free_memory
from distill.models.padding import by_length, padded
from distill.models.token_bytes import Spelling
from distill.train.mask_check import MaskRow
from distill.train.objectives.by_bytes import END, Piece, TeacherToken
from distill.train.objectives.soft_file import NAME, PADDING, PARTS, SoftTarget, read, write
from distill.train.objectives.soft_source import Source, Student, Tally, origin_of, spelt_answers

BATCH_TOKENS = 1_024
"""Padded tokens in one of the teacher's forward passes; their float32 logits take 0.2 GB with 49,152 tokens."""
ROWS_AT_ONCE = 64
"""Rows scored between two writes; a killed run loses fewer."""


Score: TypeAlias = Callable[[Sequence[Example]], list[SoftTarget]]
"""The k most probable tokens, in the teacher's ids, at each trained token of examples in the teacher's tokens."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher that can score rows."""

    name: str
    tokenizer: Any
    template: str
    difference: str
    """Of its tokenizer from the student's; empty where they are one."""
    sha256: str
    """Of what its scores depend on: weights or address, template, and how its tokens become the student's."""
    ends: tuple[int, int]
    """Ids of its end token and of the student's."""
    load: Callable[[], Score]
    rows_at_once: int


def here(name: str, source: Source) -> Teacher:
    """The teacher of that name on this machine. Raises `ModelError`."""
    model = source.teachers[name]
    folder = loading.materialise(model, say=source.say)
    tokenizer = loading.load_tokenizer(folder)

    def load() -> Score:
        return partial(score, loading.load_causal(folder), k=source.k, vocabulary=len(tokenizer))

    return teacher_of(name, tokenizer, source, identity=fingerprint(model), load=load, rows_at_once=ROWS_AT_ONCE)


def teacher_of(
    name: str,
    tokenizer: Any,
    source: Source,
    *,
    identity: Any,
    load: Callable[[], Score],
    rows_at_once: int,
) -> Teacher:
    """A teacher with this tokenizer; says where its tokenizer or its system turn is not the student's."""
    its = "own" if tokenizer.chat_template else source.template
    ends = [
        chat_template.end_ids(one, tokens)[0] for one, tokens in ((its, tokenizer), (source.template, source.tokenizer))
    ]
    difference = tokenizer_identity.difference(tokenizer, source.tokenizer)
    if difference:
        source.say(f"soft targets: {name} has another tokenizer than the student ({difference}): mapped by bytes")
    bare = sum(one.messages[0].role != "system" for one in source.sessions.values())
    hidden = chat_template.default_system(its, tokenizer) if bare else ""
    if hidden and hidden != chat_template.default_system(source.template, source.tokenizer):
        source.say(
            f"soft targets: in {bare} rows without a system turn, {name}'s template adds one that the student does not "
            f'see ("{one_line(hidden, 80)}"); with collect.system both see the same'
        )
    sha256 = json_sha256([identity, its, chat_template.jinja(its, tokenizer), not difference])
    return Teacher(name, tokenizer, its, difference, sha256, (ends[0], ends[1]), load, rows_at_once)


def scored(
    teacher: Teacher, rows: Mapping[int, MaskRow], student: Student, tally: Tally
) -> tuple[dict[str, SoftTarget], dict[int, str]]:
    """The targets of rows by key, and the key of each place; what neither file nor parts have is computed."""
    wanted: dict[str, tuple[MaskRow, Example]] = {}
    keys: dict[int, str] = {}
    for place, row in rows.items():
        if (example := _as_the_teacher_reads(row, teacher, student, tally)) is not None:
            read_as = [row.example.input_ids, row.example.labels, example.input_ids]
            keys[place] = json_sha256([row.id, read_as, teacher.sha256, student.source.k])
            wanted[keys[place]] = row, example
    parts = student.source.folder / PARTS
    found = read(student.source.folder / NAME, wanted.keys())
    for part in sorted(parts.glob("*.arrow")) if parts.is_dir() else ():
        found |= read(part, wanted.keys())
    missing = [key for key in wanted if key not in found]
    if missing:
        student.source.say(f"soft targets: {teacher.name} scores {len(missing)} rows; {len(found)} are in {NAME}")
        found |= _computed(teacher, {key: wanted[key] for key in missing}, student, parts)
    return found, keys


def _as_the_teacher_reads(row: MaskRow, teacher: Teacher, student: Student, tally: Tally) -> Example | None:
    """The row in the teacher's template and tokens; None where its answers cannot be matched."""
    try:
        example = row.encoded(teacher.template, teacher.tokenizer, student.source.train_on)
    except DistillError:
        tally.lost["that the teacher's template cannot render"] += 1
        return None
    return example


def _is_aligned(example: Example, row: MaskRow, teacher: Teacher) -> bool:
    """Whether the trained tokens of both are the same, but for the end token: their templates may space them apart."""
    swap = dict([teacher.ends, teacher.ends[::-1]])
    answer = [swap.get(label, label) for label in example.labels if label != IGNORED]
    return not teacher.difference and answer == [label for label in row.example.labels if label != IGNORED]


def _computed(
    teacher: Teacher, wanted: Mapping[str, tuple[MaskRow, Example]], student: Student, parts: Path
) -> dict[str, SoftTarget]:
    """The targets of rows, written to `parts` every `rows_at_once` rows."""
    found: dict[str, SoftTarget] = {}
    scores_of = teacher.load()
    spelling = Spelling(teacher.tokenizer)
    keys = sorted(wanted, key=lambda key: -len(wanted[key][1].input_ids))
    with console.progress("soft targets", len(keys), unit="rows") as bar:
        for start in range(0, len(keys), teacher.rows_at_once):
            chunk = keys[start : start + teacher.rows_at_once]
            scores = scores_of([wanted[key][1] for key in chunk])
            new = {
                key: _for_student(target, teacher, spelling, *wanted[key], student)
                for key, target in zip(chunk, scores, strict=True)
            }
            origins = {key: origin_of(wanted[key][0], teacher.name, student.source.train_on) for key in chunk}
            write(parts / f"{chunk[0]}.arrow", new, origins)
            found |= new
            bar.update(len(found))
    del scores_of
    free_memory()
    return found


def _for_student(
    target: SoftTarget,
    teacher: Teacher,
    spelling: Spelling,
    row: MaskRow,
    example: Example,
    student: Student,
) -> SoftTarget:
    """The teacher's entries in the student's ids."""
    theirs, ours = teacher.ends
    if _is_aligned(example, row, teacher):
        ids = target.ids.copy()
        ids[target.ids == theirs], ids[target.ids == ours] = ours, theirs
        return SoftTarget(ids, target.logprobs, target.tail)
    answers, line = [], 0
    for pieces in spelt_answers(example, spelling, theirs):
        tokens = []
        for piece in pieces:
            tokens.append(
                TeacherToken(piece, [] if np.isnan(target.tail[line]) else _spelt(target, line, spelling, theirs))
            )
            line += 1
        answers.append(tokens)
    return student.mapped(row, answers)


def _spelt(target: SoftTarget, line: int, spelling: Spelling, end: int) -> list[tuple[Piece, float]]:
    """The entries of one token by their bytes."""
    known = target.logprobs[line] > PADDING
    ids, logprobs = target.ids[line][known].tolist(), target.logprobs[line][known].tolist()
    pieces = [END if id_ == end else piece for id_, piece in zip(ids, spelling.pieces(ids), strict=True)]
    return list(zip(pieces, logprobs, strict=True))


def score(model: Any, examples: Sequence[Example], *, k: int, vocabulary: int) -> list[SoftTarget]:
    """The model's k most probable tokens at each trained token, the token itself always among them.

    `vocabulary` cuts the rows of a vocabulary that no token has. Log-probabilities are at temperature 1.
    """
    found: dict[int, SoftTarget] = {}
    for group in by_length([len(one.input_ids) for one in examples], rows=ROWS_AT_ONCE, tokens=BATCH_TOKENS):
        ids, mask = padded([examples[place].input_ids for place in group], on_left=False, device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, place in enumerate(group):
                labels = torch.tensor(examples[place].labels, device=model.device)
                trained = (labels != IGNORED).nonzero()[:, 0]
                logs = torch.log_softmax(logits[row, trained - 1, :vocabulary].float(), -1)
                found[place] = _entries(logs, labels[trained], k)
    return [found[place] for place in range(len(examples))]


def _entries(logs: Tensor, labels: Tensor, k: int) -> SoftTarget:
    """The k best of n × V log-probabilities, with each label in place of the k-th where it is not among them."""
    ids = logs.topk(min(k, logs.shape[1])).indices
    absent = ~(ids == labels[:, None]).any(1)
    ids[absent, -1] = labels[absent]
    tail = logs.scatter(1, ids, -torch.inf).logsumexp(1)
    entries = logs.gather(1, ids)
    tail[~(entries.isfinite().all(1))] = torch.nan
    kinds = (np.int32, np.float16, np.float16)
    return SoftTarget(
        *(part.cpu().numpy().astype(kind) for part, kind in zip((ids, entries, tail), kinds, strict=True))
    )
