"""One-line remarks on a run folder: stale stages, the current student, the headline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distill.core.student_folder import STUDENT
from distill.run import students
from distill.run.record import _read_record
from distill.run.scores import read_scores
from distill.text.tokens import visible


def headline(folder: Path) -> list[str]:
    """The comparison's headline, and why the judge gives no verdict, each where there is one."""
    scores = read_scores(folder)
    if scores is None:
        return []
    if (line := comparison_remark(folder)) is not None:
        return [line]
    withheld = scores.judge.withheld if scores.judge is not None else None
    return [scores.headline, *([f"the judge gives no verdict: {visible(withheld)}"] if withheld else [])]


def stale(folder: Path, record: Mapping[str, Any], *, ignored: Collection[str] = ()) -> dict[str, str]:
    """The finished stages whose inputs, save those `ignored`, or recipe have changed since, with the changes."""
    stages = record.get("stages", {})
    digests: dict[str, str | None] = {}
    reasons = {}
    for name, stage in stages.items():
        inputs = {item: digest for item, digest in (stage.get("inputs") or {}).items() if item not in ignored}
        for item in inputs:
            digests.setdefault(item, students.sha256(folder, item))
        changed_inputs = [item for item, digest in inputs.items() if digests[item] != digest]
        if changed_inputs and stage.get("status") == "done":
            verb = "has" if len(changed_inputs) == 1 else "have"
            reasons[name] = f"{', '.join(changed_inputs)} {verb} changed since"
    if "compare" in reasons and _is_finished(stages.get("report")):
        reasons.setdefault("report", "shows a comparison that is stale")
    training = students.training(folder, record) if _is_finished(stages.get("train")) else None
    if training is not None and (changed := students.changes(folder, record, training)):
        reasons["train"] = "; ".join(changed)
    return reasons


def student_remark(folder: Path) -> str | None:
    """One line on the current student, where run or recipe have changed since; see `students.remark`."""
    record = _read_record(folder)
    return students.remark(folder, record) if record else None


def comparison_remark(folder: Path) -> str | None:
    """One line where scores.json and answers.jsonl are not of the current student, or of other rows."""
    record = _read_record(folder)
    if not (folder / "scores.json").is_file():
        return None
    if not is_compared(folder, record):
        return f"the last finished comparison is not of the current student; type: distill compare {folder}"
    if (why := stale(folder, record).get("compare")) is not None:
        return f"the last finished comparison is stale: {why}; type: distill compare {folder}"
    return None


def is_compared(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether scores.json is of the current student."""
    compare = record.get("stages", {}).get("compare") or {}
    of = (compare.get("inputs") or {}).get(STUDENT)
    there = (folder / "scores.json").is_file()
    return there and _is_finished(compare) and of == students.sha256(folder, STUDENT)


def _is_finished(stage: Mapping[str, Any] | None) -> bool:
    return stage is not None and stage.get("status") == "done"
