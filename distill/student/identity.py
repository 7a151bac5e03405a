"""What decides the weights of a training run, field by field, so that a change can be named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from distill.fingerprints import json_sha256
from distill.student import models
from distill.student.examples import Examples
from distill.student.options import TrainOptions
from distill.text import visible

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_NAMED = 3
"""Sessions that are named, of those that have changed."""
_LEFT_OUT = "(left out)"


@dataclass(frozen=True, slots=True)
class Identity:
    """All that decides the weights of a run; JSON as it stands."""

    rows: list[list[str]]
    """Session id and SHA-256 of its ids and labels, in order."""
    settings: dict[str, Any]
    """By recipe key, such as `train.learning_rate`."""
    machine: dict[str, str]
    """Device and package versions: another one goes on, but not bit for bit."""

    @property
    def sha256(self) -> str:
        """Of what a resumed run must have in common."""
        return json_sha256([self.rows, self.settings])


def identity_of(found: Examples, told: Mapping[str, Any], options: TrainOptions, seed: int) -> Identity:
    """The identity of a run; `told` is what base.json says."""
    rows = [
        [id_, json_sha256([example.input_ids, example.labels])[:16]]
        for id_, example in zip(found.ids, found.examples, strict=True)
    ]
    given = {name: value for name, value in options.deciding().items() if name not in _without_effect(options)}
    settings = _flat(given, "train")
    student = {f"student.{key}": told[key] for key in ("model", "fingerprint", "layers", "template")}
    machine = {"device": models.default_device().type, **{package: version(package) for package in PACKAGES}}
    return Identity(rows, {**student, **settings, "seed": seed}, machine)


def _without_effect(options: TrainOptions) -> set[str]:
    """Evaluations change nothing of themselves; their rows are told by those that are trained on."""
    chooses = options.early_stopping is not None or options.best is not None
    return {"eval_rows"} | (set() if chooses else {"eval_steps", "eval_tokens"})


def _flat(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: item for part, inner in value.items() for key, item in _flat(inner, f"{name}.{part}").items()}


def changes(old: Identity, new: Identity) -> list[str]:
    """What is another in `new`, one short text each; empty where a run can go on."""
    fields = sorted(old.settings.keys() | new.settings.keys())
    pairs = [(name, old.settings.get(name, _LEFT_OUT), new.settings.get(name, _LEFT_OUT)) for name in fields]
    told = [f"{name} {_short(was)} → {_short(now)}" for name, was, now in pairs if was != now]
    reread = any(name.startswith("student.") for name, was, now in pairs if was != now)
    return told + _rows(old, new, reread=reread)


def machine_changes(old: Identity, new: Identity) -> list[str]:
    """Device and packages that are others in `new`."""
    return [
        f"{name} {old.machine.get(name, _LEFT_OUT)} → {now}"
        for name, now in new.machine.items()
        if old.machine.get(name) != now
    ]


def _rows(old: Identity, new: Identity, *, reread: bool) -> list[str]:
    """`reread`: another template or tokenizer has changed every row, which need not be told."""
    was, now = ({row[0]: row[1] for row in one.rows} for one in (old, new))
    found = {
        "added": [id_ for id_ in now if id_ not in was],
        "removed": [id_ for id_ in was if id_ not in now],
        "changed": [] if reread else [id_ for id_ in now if id_ in was and was[id_] != now[id_]],
    }
    told = [f"{len(ids)} {_count(ids)} {how} ({_names(ids)})" for how, ids in found.items() if ids]
    moved = not told and not reread and old.rows != new.rows
    return ["the rows are in another order"] if moved else told


def _count(ids: Sequence[str]) -> str:
    return "row" if len(ids) == 1 else "rows"


def _names(ids: Sequence[str]) -> str:
    return visible(", ".join(ids[:_NAMED])) + (" …" if len(ids) > _NAMED else "")


def _short(value: Any) -> str:
    text = visible(str(value))
    return text if len(text) <= 60 else f"{text[:12]}…"
