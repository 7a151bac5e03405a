"""Which stages are current: what run.json lacks in folders made before, and what an older revision's are said to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.core import processes
from distill.core.files import read_json, write_json
from distill.core.student_folder import TRAINING, current
from distill.errors import DistillError
from distill.pipeline.parts import recorded
from distill.pipeline.stages import PIPELINE
from distill.run import students
from distill.run.context import Context
from distill.run.decisive import completed
from distill.run.endpoints import hire
from distill.run.layout import stages_of
from distill.run.record import Run, StageRecord


def as_it_would_begin(context: Context, name: str) -> StageRecord:
    """A stage's record with all that decides its outputs now."""
    stage = PIPELINE[name]
    found = {item: students.sha256(context.folder, item) for item in stage.inputs}
    inputs = {item: digest for item, digest in found.items() if digest is not None}
    return StageRecord(revision=stage.revision, options=stage.options(context), inputs=inputs)


def outdated(folder: Path, stages: Mapping[str, Any]) -> Iterator[str]:
    """A line for each finished stage that an older revision of its code has made."""
    for name, stage in PIPELINE.items():
        entry = stages.get(name, {})
        if entry.get("status") == "done" and (made := entry.get("revision", 0)) < stage.revision:
            yield (
                f"{name}: made by revision {made} of its code, now {stage.revision}; kept: "
                f"`distill run {folder} --redo {name}` makes it again"
            )


def adopt(run: Run, context: Context) -> None:
    """Note the options of what was done in a folder made before run.json kept them, as its own recipe.yaml says them.

    To be called before that file is written anew.
    """
    accounts = run.accounts_before()
    path = current(run.folder) / TRAINING
    made = read_json(path) if accounts else None
    for account in (*accounts, made):
        if isinstance(account, dict) and isinstance(account.get("stages"), dict):
            _complete(context, account)
    if isinstance(made, dict) and processes.is_first():
        write_json(path, made)


def _complete(context: Context, account: dict[str, Any]) -> None:
    """Give the finished stages of an account the options of its recipe; those whose parts are gone run again."""
    with suppress(DistillError):
        loaded = recorded(account["recipe"], allowed=context.allowed)
        before = replace(context, recipe=loaded, teachers=hire(loaded, context.folder, to_ask=False))
        for name, entry in account["stages"].items():
            if entry.get("status") == "done" and name in stages_of(loaded):
                _note(before, name, account["stages"])


def _note(context: Context, name: str, stages: Mapping[str, dict[str, Any]]) -> None:
    """Complete one stage; not a report that others have run after, which it cannot show."""
    entry = stages[name]
    if name == "report" and any(other["started"] > entry["started"] for other in stages.values()):
        return
    with suppress(DistillError):
        now = as_it_would_begin(context, name)
        entry |= {"revision": 0, "options": completed(now.options, now.revision)}
        if name == "report":  # older versions did not count the student as its input
            entry["inputs"] = {**now.inputs, **entry["inputs"]}
