"""Scores rows with a teacher on this machine: its most probable tokens at every token that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.core import console
from distill.core.hashing import json_sha256
from distill.core.weights import fingerprint
from distill.errors import DistillError
from distill.models import chat_template, loading, tokenizer_identity
from distill.models.chat_template import IGNORED, Example
from distill.models.device import free_memory
from distill.models.padding import by_length, padded
from distill.models.token_bytes import Spelling
from distill.train.mask_check import MaskRow
from distill.train.objectives.by_bytes import END, TeacherToken
from distill.train.objectives.soft_file import NAME, PARTS, SoftTarget, read, write
from distill.train.objectives.soft_source import Source, Student, Tally, spelt_answers

BATCH_TOKENS = 1_024
"""Padded tokens in one of the teacher's forward passes; their float32 logits take 0.2 GB with 49,152 tokens."""
ROWS_AT_ONCE = 64
"""Rows scored between two writes; a killed run loses fewer."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher on this machine, ready to score."""

    name: str
    folder: Path
    tokenizer: Any
    template: str
    is_same: bool
    """Whether its tokenizer is the student's."""
    sha256: str
    """Of its weights and template."""
    ends: tuple[int, int]
    """Ids of its end token and of the student's."""


def ready(name: str, source: Source) -> Teacher:
    """The teacher of that name. Raises `ModelError`."""
    model = source.teachers[name]
    folder = loading.materialise(model, say=source.say)
    own = loading.load_tokenizer(folder)
    its = "own" if own.chat_template else source.template
    ends = [chat_template.end_ids(one, tokens)[0] for one, tokens in ((its, own), (source.template, source.tokenizer))]
    difference = tokenizer_identity.difference(own, source.tokenizer)
    if difference:
        source.say(f"soft targets: {name} has another tokenizer than the student ({difference}): mapped by bytes")
    identity = json_sha256([fingerprint(model), its, chat_template.jinja(its, own), not difference])
    return Teacher(name, folder, own, its, not difference, identity, (ends[0], ends[1]))


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
        found |= _computed(teacher, {key: wanted[key] for key in missing}, student, tally, parts)
    return found, keys


def _as_the_teacher_reads(row: MaskRow, teacher: Teacher, student: Student, tally: Tally) -> Example | None:
    """The row in the teacher's template and tokens; None where its answers cannot be matched."""
    try:
        example = chat_template.encode(
            row.messages,
            teacher.template,
            teacher.tokenizer,
            truncated=row.truncated,
            train_on=student.source.train_on,
            unlearnt=row.unlearnt,
        )
    except DistillError:
        tally.lost["that the teacher's template cannot render"] += 1
        return None
    swap = dict([teacher.ends, teacher.ends[::-1]])
    answer = [swap.get(label, label) for label in example.labels if label != IGNORED]
    if teacher.is_same and answer != [label for label in row.example.labels if label != IGNORED]:
        tally.lost["whose answer has other tokens in the teacher's template"] += 1
        return None
    return example


def _computed(
    teacher: Teacher, wanted: Mapping[str, tuple[MaskRow, Example]], student: Student, tally: Tally, parts: Path
) -> dict[str, SoftTarget]:
    """The targets of rows, written to `parts` every `ROWS_AT_ONCE` rows."""
    found: dict[str, SoftTarget] = {}
    model, size = loading.load_causal(teacher.folder), len(teacher.tokenizer)
    spelling = Spelling(teacher.tokenizer)
    keys = sorted(wanted, key=lambda key: -len(wanted[key][1].input_ids))
    with console.progress("soft targets", len(keys), unit="rows") as bar:
        for start in range(0, len(keys), ROWS_AT_ONCE):
            chunk = keys[start : start + ROWS_AT_ONCE]
            scores = score(model, [wanted[key][1] for key in chunk], k=student.source.k, vocabulary=size)
            new = {
                key: _for_student(target, teacher, spelling, *wanted[key], student, tally)
                for key, target in zip(chunk, scores, strict=True)
            }
            write(parts / f"{chunk[0]}.arrow", new)
            found |= new
            bar.update(len(found))
    del model
    free_memory()
    return found


def _for_student(
    target: SoftTarget,
    teacher: Teacher,
    spelling: Spelling,
    row: MaskRow,
    example: Example,
    student: Student,
    tally: Tally,
) -> SoftTarget:
    """The teacher's entries in the student's ids."""
    theirs, ours = teacher.ends
    if teacher.is_same:
        ids = target.ids.copy()
        ids[target.ids == theirs], ids[target.ids == ours] = ours, theirs
        return SoftTarget(ids, target.logprobs, target.tail)
    answers, line = [], 0
    for pieces in spelt_answers(example, spelling, theirs):
        tokens = []
        for piece in pieces:
            others = [END if id_ == theirs else one for id_, one in _spelt(target.ids[line], spelling)]
            tokens.append(TeacherToken(piece, list(zip(others, target.logprobs[line].tolist(), strict=True))))
            line += 1
        answers.append(tokens)
    return student.mapped(row, answers, tally)


def _spelt(ids: Any, spelling: Spelling) -> Iterator[tuple[int, bytes]]:
    numbers = ids.tolist()
    return zip(numbers, spelling.pieces(numbers), strict=True)


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
