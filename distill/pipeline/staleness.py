"""Which stages are current: completes run.json of older folders, and reports results of older revisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.core import processes
from distill.core.files import read_json, write_json
from distill.core.student_folder import TRAINING, current
from distill.errors import DistillError
from distill.pipeline.parts import recipe_of_record
from distill.pipeline.stages import PIPELINE
from distill.run import students
from distill.run.context import Context
from distill.run.decisive import completed
from distill.run.endpoints import teachers_of
from distill.run.layout import STAGES, stages_of
from distill.run.record import Run, RunRecord, StageRecord

MOST_CHANGES = 4
"""Changes listed when a stage runs again."""


def as_it_would_begin(context: Context, name: str) -> StageRecord:
    """A stage's record with everything that determines its outputs, as of now."""
    stage = PIPELINE[name]
    digests = {item: students.sha256(context.folder, item) for item in STAGES[name].inputs}
    inputs = {item: digest for item, digest in digests.items() if digest is not None}
    return StageRecord(revision=stage.REVISION, options=stage.options(context), inputs=inputs)


def few(changes: Sequence[str]) -> str:
    """The first changes, and how many more there are."""
    more = f" and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
    return "; ".join(changes[:MOST_CHANGES]) + more


def revision_remarks(folder: Path, record: RunRecord) -> Iterator[str]:
    """A line for each finished stage that was made by an older revision of its code."""
    for name, stage in PIPELINE.items():
        entry = record.stages.get(name)
        if entry is not None and entry.status == "done" and entry.revision < stage.REVISION:
            yield (
                f"{name}: made by revision {entry.revision} of its code, now {stage.REVISION}; kept: "
                f"`distill run {folder} --redo {name}` makes it again"
            )


def adopt(run: Run, context: Context) -> None:
    """Complete a run.json of a version that did not record options, with those of the folder's recipe.yaml.

    Call it before that file is overwritten.
    """
    accounts = run.accounts_before()
    path = current(run.folder) / TRAINING
    training = read_json(path) if accounts else None
    for account in (*accounts, training):
        if isinstance(account, dict) and isinstance(account.get("stages"), dict):
            _complete(context, account)
    if isinstance(training, dict) and processes.is_first():
        write_json(path, training)


def _complete(context: Context, account: dict[str, Any]) -> None:
    """Add to an account's finished stages the options of its recipe; stages whose parts are gone run again."""
    with suppress(DistillError):
        recipe = recipe_of_record(account["recipe"], allowed=context.options.allowed)
        before = replace(context, recipe=recipe, teachers=teachers_of(recipe, context.folder, to_ask=False))
        for name, entry in account["stages"].items():
            if entry.get("status") == "done" and name in stages_of(recipe):
                _note(before, name, account["stages"])


def _note(context: Context, name: str, stages: Mapping[str, dict[str, Any]]) -> None:
    """Complete one stage, except a report older than another stage, which it cannot show."""
    entry = stages[name]
    if name == "report" and any(other["started"] > entry["started"] for other in stages.values()):
        return
    with suppress(DistillError):
        now = as_it_would_begin(context, name)
        entry |= {"revision": 0, "options": completed(now.options, now.revision)}
        if name == "report":  # older versions did not count the student as its input
            entry["inputs"] = {**now.inputs, **entry["inputs"]}
