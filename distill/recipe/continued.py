"""A student that continues another run's: which run, and what the recipe takes over from its student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.core.embedded import EMBEDDED
from distill.core.files import flatten, read_json
from distill.core.student_folder import TRAINING, current, is_student
from distill.core.weights import read_base
from distill.errors import DistillError, RecipeError
from distill.recipe.paths import find

_ADAPTER = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "dora": "use_dora"}
"""Keys of `train.lora` that shape the adapter, with their names in adapter_config.json."""


def continue_student(document: dict[str, Any], folder: Path) -> list[str]:
    """Where `student.model` names a run, put its student's base there and the run into `student.continues`.

    What the recipe leaves out of template, pruning, method and adapter is filled in from that student; returns a line
    for each value that contradicts it. `folder` is the recipe's.
    """
    student = document.get("student")
    name = student.get("model") if isinstance(student, dict) else None
    if not isinstance(student, dict) or not isinstance(name, str) or name in EMBEDDED:
        return []
    try:
        if (run := run_named(name, folder)) is None:
            return []
        before = student_settings(run)
    except (OSError, ValueError, RuntimeError, DistillError) as error:
        return [f"student.model: {error}"]
    student |= {"model": before.pop("student.model"), "continues": str(run)}
    faults = contradictions(document, run, before)
    for key, value in before.items():
        if value is not None:
            _fill_in(document, key.split("."), value)
    return faults


def run_named(name: str, folder: Path) -> Path | None:
    """The run that `student.model` names, looked up as `reuse` is; None where it names a model.

    Raises `RecipeError` for `runs/NAME` where nothing is.
    """
    places = (Path(), folder, Path("runs"))
    if (record := find(f"{name}/run.json", *places)) is not None:
        return record.parent
    if Path(name).parts[:1] == ("runs",) and find(name, *places) is None:
        raise RecipeError(f"no run {name}; looked in {', '.join(str(place / name) for place in places)}")
    return None


def student_settings(run: Path) -> dict[str, Any]:
    """What a run's student decides for one that continues it, by recipe key; None for a key that must be left out.

    Raises `RecipeError` where the run has no finished student, `ModelError` where that cannot be read.
    """
    if not run.is_dir():
        raise RecipeError(f"{run} is gone, whose student is continued; put it back to train")
    if not is_student(current(run)):
        raise RecipeError(f"{run} has no finished student to continue; finish it first: distill run {run}")
    base = read_base(current(run))
    account = read_json(current(run) / TRAINING)
    recipe = flatten(account.get("recipe")) if isinstance(account, dict) else {}
    settings = {
        "student.model": base["model"],
        "student.template": base["template"],
        "student.prune.layers": len(base["layers"]) if base["layers"] else None,
        "student.prune.by": recipe.get("student.prune.by", "uniform") if base["layers"] else None,
        "train.method": base.get("method") or ("qlora" if base["quantised"] else "lora"),
    }
    adapter = read_json(current(run) / "adapter_config.json")
    if settings["train.method"] == "full" or not isinstance(adapter, dict):
        return settings
    shape = {f"train.lora.{key}": adapter.get(name) for key, name in _ADAPTER.items()}
    targets = recipe.get("train.lora.target_modules", "all-linear")
    return {**settings, **shape, "train.lora.target_modules": targets, "train.lora.init": "default"}


def contradictions(document: Mapping[str, Any], run: Path, before: Mapping[str, Any]) -> list[str]:
    """A line for each value of a recipe's document that the student of `run`, with these settings, contradicts."""
    return [
        f"{key}: found {given}, and the student of {run} that is continued has {_shown(before[key])}; leave it out"
        for key, given in _given(document)
        if key in before and _comparable(given) != _comparable(before[key])
    ]


def _given(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section in ("student", "train"):
        if isinstance(document.get(section), Mapping):
            yield from ((key, value) for key, value in flatten(document[section], section).items() if value is not None)


def _comparable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _fill_in(node: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a nested value that is not there; `train` is not added to a recipe without it."""
    *sections, last = keys
    for name in sections:
        if node.get(name) is None:
            if name == "train":
                return
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            return
    if node.get(last) is None:
        node[last] = value
