"""Soft targets: the student learns the teacher's distribution over the next token, beside the token it wrote.

A teacher on this machine scores the kept rows once, before the first step: one forward pass, without sampling. Hinton
et al., 2015, arXiv 1503.02531; the k most probable tokens with a bucket for all others stand for the distribution.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.core import console
from distill.core.hashing import json_sha256
from distill.core.weights import fingerprint
from distill.errors import DistillError, RecipeError
from distill.models import chat_template, loading, tokenizer_identity
from distill.models.chat_template import IGNORED, Example
from distill.models.device import free_memory
from distill.models.padding import by_length, padded
from distill.train.kernels.soft import SoftRows
from distill.train.mask_check import MaskRow
from distill.train.objectives.soft_file import NAME, SoftTarget, read, write

BATCH_TOKENS = 1_024
"""Padded tokens in one of the teacher's forward passes; their float32 logits take 0.2 GB with 49,152 tokens."""
ROWS_AT_ONCE = 64
"""Rows scored between two writes; a killed run loses fewer."""


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


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher on this machine, ready to score."""

    name: str
    folder: Path
    tokenizer: Any
    template: str
    vocabulary: int
    """Ids below it are real tokens of both tokenizers."""
    sha256: str
    """Of its weights and template."""
    ends: Mapping[int, int]
    """Its end token to the student's, and back."""


def prepare(
    folder: Path,
    rows: Sequence[MaskRow],
    by_teacher: Mapping[str, str],
    teacher_of: Callable[[str], str | None],
    *,
    weight: float,
    k: int,
    template: str,
    tokenizer: Any,
    train_on: chat_template.TrainOn,
    say: Callable[[str], None],
) -> SoftTargets:
    """The targets of rows, from soft_targets.arrow in the run's folder as far as it has them, else from the teachers.

    `by_teacher` has the model of each local teacher by name, and `teacher_of` the name of the one that answered a row.
    Rows of other teachers, and rows that the teacher's template tokenises differently, learn by cross entropy; they are
    counted. Raises `RecipeError` where no row has a target or a tokenizer is another, `ModelError` for a model.
    """
    targets: dict[str, SoftTarget] = {}
    keys: list[str | None] = [None] * len(rows)
    lost: Counter[str] = Counter()
    for name, model in by_teacher.items():
        teacher = _teacher(name, model, template, tokenizer, say)
        mine = [place for place, row in enumerate(rows) if teacher_of(row.id) == name]
        scored = dict(_scored_rows(teacher, [rows[place] for place in mine], mine, train_on, lost))
        for place, (row, example) in scored.items():
            keys[place] = _key(row, example, teacher, k)
        wanted = {key: scored[place][1] for place, key in enumerate(keys) if key is not None and place in scored}
        targets |= _targets(folder, teacher, wanted, k, say)
    lost["of a teacher that is not on this machine"] = sum(teacher_of(row.id) not in by_teacher for row in rows)
    _report(rows, keys, targets, lost, say)
    found = [None if key is None else targets[key] for key in keys]
    digest = json_sha256([weight, k, keys])
    return SoftTargets(found, [row.example.trained for row in rows], weight, k, digest)


def _teacher(name: str, model: str, template: str, tokenizer: Any, say: Callable[[str], None]) -> Teacher:
    folder = loading.materialise(model, say=say)
    own = loading.load_tokenizer(folder)
    same = tokenizer_identity.compare(own, tokenizer)
    if not same.same:
        raise RecipeError(
            f"train.objective soft: the teacher {name} has another tokenizer than the student ({same.difference}); "
            "their tokens cannot be matched: take a student of its family, or `kind: sft`"
        )
    its = "own" if own.chat_template else template
    ends = [chat_template.end_ids(one, tokens)[0] for one, tokens in ((its, own), (template, tokenizer))]
    identity = json_sha256([fingerprint(model), its, chat_template.jinja(its, own)])
    return Teacher(name, folder, own, its, same.common, identity, {ends[0]: ends[1], ends[1]: ends[0]})


def _scored_rows(
    teacher: Teacher,
    rows: Sequence[MaskRow],
    places: Sequence[int],
    train_on: chat_template.TrainOn,
    lost: Counter[str],
) -> Iterator[tuple[int, tuple[MaskRow, Example]]]:
    """Each row as the teacher reads it, where its answers have the student's tokens."""
    for place, row in zip(places, rows, strict=True):
        try:
            example = chat_template.encode(
                row.messages,
                teacher.template,
                teacher.tokenizer,
                truncated=row.truncated,
                train_on=train_on,
                unlearnt=row.unlearnt,
            )
        except DistillError:
            lost["that the teacher's template cannot render"] += 1
            continue
        answer = [teacher.ends.get(label, label) for label in example.labels if label != IGNORED]
        if answer == [label for label in row.example.labels if label != IGNORED]:
            yield place, (row, example)
        else:
            lost["whose answer has other tokens in the teacher's template"] += 1


def _key(row: MaskRow, example: Example, teacher: Teacher, k: int) -> str:
    return json_sha256([row.id, row.example.input_ids, row.example.labels, example.input_ids, teacher.sha256, k])


def _targets(
    folder: Path, teacher: Teacher, wanted: Mapping[str, Example], k: int, say: Callable[[str], None]
) -> dict[str, SoftTarget]:
    """The targets by key; those that are missing are computed, and written every `ROWS_AT_ONCE` rows."""
    path, parts = folder / NAME, folder / f"{NAME}.parts"
    found = read(path, wanted.keys())
    for part in sorted(parts.glob("*.arrow")) if parts.is_dir() else ():
        found |= read(part, wanted.keys())
    missing = {key: example for key, example in wanted.items() if key not in found}
    if not missing:
        return found
    say(f"soft targets: {teacher.name} scores {len(missing)} rows; {len(found)} are in {NAME}")
    model = loading.load_causal(teacher.folder)
    keys = sorted(missing, key=lambda key: -len(missing[key].input_ids))
    with console.progress("soft targets", len(keys), unit="rows") as bar:
        for start in range(0, len(keys), ROWS_AT_ONCE):
            chunk = keys[start : start + ROWS_AT_ONCE]
            scores = score(model, [missing[key] for key in chunk], k=k, vocabulary=teacher.vocabulary)
            new = {key: _for_student(target, teacher) for key, target in zip(chunk, scores, strict=True)}
            write(parts / f"{start:09}.arrow", new)
            found |= new
            bar.update(start + len(chunk))
    del model
    free_memory()
    write(path, found)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def _for_student(target: SoftTarget, teacher: Teacher) -> SoftTarget:
    ids = target.ids.copy()
    for theirs, ours in teacher.ends.items():
        ids[target.ids == theirs] = ours
    return SoftTarget(ids, target.logprobs, target.tail)


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


def _report(
    rows: Sequence[MaskRow],
    keys: Sequence[str | None],
    targets: Mapping[str, SoftTarget],
    lost: Counter[str],
    say: Callable[[str], None],
) -> None:
    """Say how much of the training has targets. Raises `RecipeError` where nothing has."""
    with_target = [targets[key] for key in keys if key is not None]
    reasons = [f"{count} rows {reason}" for reason, count in lost.items() if count]
    if not with_target:
        raise RecipeError(f"train.objective soft: no row has soft targets ({'; '.join(reasons)}); take `kind: sft`")
    total = sum(row.example.trained for row in rows)
    tails = np.concatenate([target.tail for target in with_target]).astype(np.float32)
    held = 1 - float(np.exp(tails[np.isfinite(tails)]).sum() / max(1, np.count_nonzero(~np.isnan(tails))))
    share = np.count_nonzero(~np.isnan(tails)) / total
    rest = f"; the rest learns by cross entropy: {'; '.join(reasons)}" if reasons else ""
    say(f"soft targets: {share:.0%} of the trained tokens have one, which holds {held:.1%} of the probability{rest}")
