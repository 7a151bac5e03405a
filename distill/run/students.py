"""A run's students (current, in training, previous), and the record of the training that made each.

Training writes `student.next/`, `training.json` last. Then `student/` is renamed to `student.previous/`, and
`student.next/` to `student/`. Where a process was killed in between, `settle` finishes the renaming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from distill.core.files import flatten, read_json, write_json
from distill.core.hashing import tree_sha256
from distill.core.student_folder import (
    CHECKPOINTS,
    NEXT,
    PREVIOUS,
    STUDENT,
    TRAINING,
    current,
    is_finished,
    is_student,
    remove,
)
from distill.core.weights import student_fingerprint
from distill.errors import RecipeError
from distill.recipe import Objective, Recipe
from distill.recipe.yaml_reader import read_yaml
from distill.run.decisive import flat, of_part, shown
from distill.text.tokens import visible

LOGS = (
    "train_log.jsonl", "example_losses.jsonl", "samples.jsonl", "quarantined.jsonl", "masks.json",
    "checks.json", "tensorboard", "wandb",
)  # fmt: skip
"""Files besides checkpoints that a training writes before it is finished."""
WITHOUT_EFFECT = frozenset({"save_steps", "show_masks", "report_to"})
"""Keys of `train` that do not affect the student."""
CONTINUES = "student.continues sha256"
"""Option of the stage train: the fingerprint of the student that is continued."""


def sha256(run: Path, name: str) -> str | None:
    """The SHA-256 of a file of the run, or of its student without training.json, which holds it; None if missing."""
    path = current(run) if name == STUDENT else run / name
    return _sha256(path) if path.exists() else None


def _sha256(path: Path) -> str:
    files = ((str(file), file.stat()) for file in (path, *sorted(path.rglob("*"))) if file.is_file())
    marks = tuple((name, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino) for name, at in files)
    return _tree_hash(path, marks)


@cache
def _tree_hash(path: Path, _files: tuple[Any, ...]) -> str:
    """The hash of a file or folder, cached: weights and rows are large, and a command needs it several times."""
    return tree_sha256(path, without=(TRAINING, CHECKPOINTS))


def sha256_of_next(run: Path) -> str:
    """The value of `sha256` for the student in `student.next/`, once it is in place."""
    return _sha256(run / NEXT)


def previous_sha256(run: Path, continued: Path) -> str | None:
    """The fingerprint of the student that a run continues; where that run is gone, as the run's own student has it."""
    if is_student(student := current(continued)):
        return student_fingerprint(student)
    base = read_json(current(run) / "base.json")
    previous = base.get("previous") if isinstance(base, dict) else None
    return previous["fingerprint"] if isinstance(previous, dict) and previous.get("run") == str(continued) else None


def finish(run: Path, account: Mapping[str, Any]) -> None:
    """Write training.json into `student.next/`, which finishes it, and make it the current student."""
    write_json(run / NEXT / TRAINING, account)
    settle(run)


def settle(run: Path) -> None:
    """Finish an interrupted replacement of a student, and move a training that an older version began.

    Only for the process that holds the run's lock.
    """
    if is_finished(run / NEXT):
        remove(run / NEXT / CHECKPOINTS)
        if is_student(run / STUDENT):
            remove(run / PREVIOUS)
            (run / STUDENT).rename(run / PREVIOUS)
        remove(run / STUDENT)
        (run / NEXT).rename(run / STUDENT)
    _take_over(run / STUDENT, run / NEXT)


def _take_over(student: Path, new: Path) -> None:
    """Older versions trained in `student/`, beside the finished student if there was one."""
    if student.is_dir() and not is_student(student) and not new.exists():
        student.rename(new)
    elif (student / CHECKPOINTS).is_dir() and not (new / CHECKPOINTS).exists():
        new.mkdir(exist_ok=True)
        for name in (*LOGS, CHECKPOINTS):  # checkpoints last: their presence marks a training to move
            if (student / name).exists():
                remove(new / name)
                (student / name).rename(new / name)


# Accounts of training


def account(run: Path, record: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of training.json: run.json's facts, its stages up to `train`, and the resolved recipe."""
    facts = {key: value for key, value in record.items() if key not in ("stages", "student")}
    before = {name: entry for name, entry in record.get("stages", {}).items() if name in _BEFORE}
    return {**facts, "stages": {**before, "train": dict(train)}, "recipe": recipe(run)}


_BEFORE = ("expand", "collect", "curate")


def training(run: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The account of the current student's training; None where no account matches its files.

    The student of an older version has no training.json: its account is run.json and recipe.yaml until another training
    begins, which sets it aside in run.json.
    """
    last = record.get("stages", {}).get("train") or {}
    candidates = [read_json(current(run) / TRAINING), record.get("student"), account(run, record, last)]
    if (digest := sha256(run, STUDENT)) is None:
        return None
    return next((one for one in candidates if _is_account(one) and _student_digest(one) == digest), None)


def _student_digest(account: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the student that a finished training made."""
    train = account["stages"]["train"]
    digest: str | None = (train.get("outputs") or {}).get(STUDENT)
    return digest if train.get("status") == "done" else None


def _is_account(value: Any) -> TypeGuard[dict[str, Any]]:
    stages = value.get("stages") if isinstance(value, dict) else None
    return isinstance(stages, dict) and isinstance(stages.get("train"), dict) and isinstance(value.get("recipe"), dict)


def set_aside(run: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The account of an older version's student, to keep in run.json before another training replaces that."""
    train = record.get("stages", {}).get("train") or {}
    if (current(run) / TRAINING).is_file():
        return None
    earlier = record.get("student")
    if train.get("status") != "done" or (_is_account(earlier) and earlier["stages"]["train"] == train):
        return earlier
    return account(run, record, train)


def recipe(run: Path) -> dict[str, Any]:
    """The run's recipe as it is now, resolved; empty where it cannot be read."""
    try:
        return read_yaml(run / "recipe.yaml")
    except RecipeError:
        return {}


# Changes since


def deciding_options(loaded: Recipe) -> dict[str, Any]:
    """Options of a recipe that determine the student, by key, without defaults."""
    values = flat(loaded.student, "student") if loaded.student is not None else {}
    if loaded.train is not None:
        values |= flat(loaded.train.options, "train") | _objective(loaded.train.objective)
    values.pop("student.continues", None)  # by its contents, not by its path
    deciding = {key: value for key, value in values.items() if key.removeprefix("train.") not in WITHOUT_EFFECT}
    return {"seed": loaded.seed, **deciding}


def _objective(section: Objective) -> dict[str, Any]:
    key = "train.objective"
    named = flat(section, key) if section.kind != "sft" else {}
    return {**named, **flat(section.options, key), **of_part(key, section.kind)}


def changes(run: Path, record: Mapping[str, Any], account: Mapping[str, Any]) -> list[str]:
    """Differences of the run's recipe and rows from those that made the student, one short text each."""
    was, now = dict(_deciding(account["recipe"])), dict(_deciding(recipe(run)))
    differences = [
        f"{name} {shown(was.get(name))} → {shown(now.get(name))}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
        and not (name in was.keys() ^ now.keys() and _is_default(record, account, name))
    ]
    differences += ["other rows in kept.jsonl"] if has_other_rows(run, account) else []
    continued = (recipe(run).get("student") or {}).get("continues")
    if isinstance(continued, str) and (was_sha := account["stages"]["train"].get("options", {}).get(CONTINUES)):
        differences += [f"another student in {continued}"] if previous_sha256(run, Path(continued)) != was_sha else []
    return differences


def _is_default(record: Mapping[str, Any], account: Mapping[str, Any], name: str) -> bool:
    """Whether a key missing in one version of the recipe has its default in the other, and so has not changed."""
    was, now = account["stages"]["train"].get("options"), record.get("chosen")
    return was is not None and now is not None and name not in was and name not in now


def has_other_rows(run: Path, account: Mapping[str, Any]) -> bool:
    """Whether kept.jsonl is not what the student was trained on."""
    rows = account["stages"]["train"].get("inputs", {}).get("kept.jsonl")
    return rows is not None and sha256(run, "kept.jsonl") != rows


def _deciding(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys of a recipe's document that determine the student, with their values."""
    for section in ("student", "train", "seed"):
        for name, value in flatten(document.get(section), section).items():
            if value is not None and name.removeprefix("train.") not in WITHOUT_EFFECT:
                yield name, value


def remark(run: Path, record: Mapping[str, Any]) -> str | None:
    """One line on the current student where the run or its recipe has changed since; else None."""
    if not is_student(current(run)):
        return None
    last = record.get("stages", {}).get("train") or {}
    own_account = training(run, record)
    if own_account is None:
        return "how the current student was trained is not known: another training has begun since"
    own = own_account["stages"]["train"]
    unfinished = last.get("status") != "done" and last.get("started") != own.get("started")
    differences = changes(run, record, own_account)
    since = [f"the recipe has changed ({'; '.join(differences)})"] if differences else []
    since += ["a later training is unfinished"] if unfinished else []
    return f"the student is that of {visible(str(own.get('started')))}; {', and '.join(since)}" if since else None
