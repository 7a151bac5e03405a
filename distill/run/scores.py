"""Typed reader of scores.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from distill.errors import RunFolderError
from distill.run import students
from distill.run.reading import json_object, validated
from distill.types import MODELS


def finite(value: Any) -> float | None:
    """The number if it is finite, else `None`."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _means(by_model: Any) -> Any:
    """The entries of models that have a mean."""
    return {model: one for model, one in (by_model or {}).items() if finite((one or {}).get("mean")) is not None}


def _estimate(value: Any) -> Any:
    """An interval as compare writes it; the share of a gap counts as its mean."""
    mean = finite((value or {}).get("mean", (value or {}).get("share")))
    return {**value, "mean": mean} if mean is not None else None


Number: TypeAlias = Annotated[float | None, BeforeValidator(finite)]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or a share of a gap, and its 95% interval over prompts."""

    mean: float
    low: Number = None
    high: Number = None
    n: int | None = None
    """Prompts."""
    excludes_zero: bool = field(default=False, repr=False)
    """For a difference: whether the interval lies on one side of zero."""

    @property
    def share(self) -> float:
        """The share of a gap: 0 none, 1 all, below 0 the wrong way."""
        return self.mean

    @property
    def ends(self) -> list[float]:
        """The mean and the known ends of the interval."""
        return [end for end in (self.mean, self.low, self.high) if end is not None]


Interval: TypeAlias = Annotated[Estimate | None, BeforeValidator(_estimate)]


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure of all models, over all prompts or a part of them."""

    title: str = ""
    unit: str = ""
    better: str = ""
    """`lower`, `higher`, `near 1`, or `teacher`: the nearer to the teacher's value."""
    explanation: str = ""
    correctness: bool = False
    """Whether it measures if answers are right."""
    by: Annotated[Mapping[str, Estimate], BeforeValidator(_means)] = field(default_factory=dict)
    """By model (`base`, `student`, `teacher`, `teacher_again`), where it has the measure."""
    student_minus_base: Interval = None
    student_minus_previous: Interval = None
    """Only where the student continued another."""
    p: Number = None
    """Sign-flip p of the difference from the base."""
    p_holm: Number = None
    """The same, Holm-adjusted over all categories or tasks."""
    gap_closed: Interval = None
    """The student's share of the way from the base to `gap_target`."""
    gap_target: str | None = None
    note: str | None = None
    n: int | None = None
    """Prompts of a category."""
    categories: Mapping[str, Measured] = field(default_factory=dict)
    clean: Measured | None = None
    """The measure without leaked prompts."""
    leaked: Measured | None = None


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """The judge's verdicts on a pair of models, from the view of the first."""

    n: int | None = None
    wins: Number = None
    ties: Number = None
    losses: Number = None
    unparsed: Number = None
    win_rate: Interval = None
    p: Number = None
    p_holm: Number = None
    categories: Mapping[str, JudgedPair] = field(default_factory=dict)
    length_controlled: Interval = None
    """The win rate at equal length."""
    length_note: str | None = None
    """Why there is none."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The judge's grades of one model, 0 to 10."""

    grade: Interval = None
    unparsed: int | None = None


@dataclass(frozen=True, slots=True)
class JudgeAudit:
    """Consistency and biases of the judge, as shares."""

    order_consistency: Number = None
    test_retest: Number = None
    first_place: Interval = None
    longer_wins: Number = None
    longer_would_say: Interval = None
    unparsed: Number = None
    cut: Number = None
    """Of the unparsed: cut at the token limit before the verdict."""
    same_family: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgeScores:
    """The entry `judge`."""

    model: str = ""
    mode: str = ""
    pairs: Mapping[str, JudgedPair] = field(default_factory=dict)
    student_minus_base: Interval = None
    single: Mapping[str, Grade] = field(default_factory=dict)
    audit: JudgeAudit | None = None
    withheld: str | None = None
    """Why the judge gives no verdict."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """The entry `lm_eval`: tasks of the lm-evaluation-harness."""

    package: str | None = None
    limit: int | None = None
    shots: int | None = None
    chat: bool | None = None
    said: tuple[str, ...] = ()
    """Keys of the student's rows in the folder lm_eval/."""
    entries: Mapping[str, Measured] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


TITLES: Mapping[str, str] = {model: model.replace("_", " ").capitalize() for model in MODELS}
"""What each model is called."""
OF_DATA = "the answers of the data, in place of a teacher's"
"""Description of the teacher in a run without one."""


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """One model's figures on one label."""

    label: str
    precision: Number = None
    recall: Number = None
    f1: Number = None
    support: int | None = None
    """Prompts whose right label it is."""


@dataclass(frozen=True, slots=True)
class LabelTable:
    """One model's answers by labels."""

    n: int | None = None
    """Prompts."""
    matrix: tuple[tuple[int, ...], ...] = ()
    """Prompts by right label (rows) and given one (columns, the last for none)."""
    per_label: tuple[LabelFigures, ...] = ()
    macro_f1: Interval = None
    macro_precision: Interval = None
    macro_recall: Interval = None
    micro_f1: Interval = None


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The entry `labels`."""

    labels: tuple[str, ...] = ()
    by: Mapping[str, LabelTable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The contents of scores.json; the file has more fields."""

    headline: str = ""
    prompts: int | None = None
    """Prompts on which all models were compared."""
    held_out: bool = True
    """Whether the prompts are the run's held-out rows, not those of a file."""
    method: str | None = None
    models: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    metrics: Mapping[str, Measured] = field(default_factory=dict)
    lead: str | None = None
    """The measure that the headline begins with."""
    cut_share: Mapping[str, Number] = field(default_factory=dict)
    """Share of answers cut off at the token limit, by model."""
    power: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    judge: JudgeScores | None = None
    coverage: Mapping[str, Any] | None = None
    leaks: Mapping[str, Any] | None = field(default_factory=dict)
    """`None` where it is unknown whether prompts were trained on."""
    lm_eval: TaskScores | None = None
    labels: LabelScores | None = None

    @property
    def leading(self) -> Measured | None:
        """The measure that the headline begins with."""
        return self.metrics.get(self.lead or "")

    @property
    def titles(self) -> dict[str, str]:
        """What each model is called: the teacher `Reference` where no teacher gave its answers."""
        return {**TITLES} | ({"teacher": "Reference"} if self.is_of_data else {})

    @property
    def is_of_data(self) -> bool:
        """Whether the answers that are compared with are those of the data, and no teacher's."""
        return self.models.get("teacher", {}).get("description") == OF_DATA

    def described(self, model: str) -> str | None:
        """A model's description, else its name."""
        entry = self.models.get(model, {})
        return entry.get("description") or entry.get("model")


def read_scores(folder: Path) -> Comparison | None:
    """A run's comparison; `None` where it was not compared. Raises `RunFolderError` for a damaged file."""
    path = folder / "scores.json"
    if not path.is_file():
        return None
    document = json_object(path)
    scores = validated(Comparison, document, path)
    return validated(Comparison, _reworded(document), path) if scores.is_of_data else scores


_WORDED = {"headline", "title", "unit", "explanation", "notes", "note"}


def _reworded(value: Any, key: str = "") -> Any:
    """The document with `reference` for `teacher` in its texts, of a run whose answers no teacher gave."""
    if isinstance(value, dict):
        return {name: _reworded(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_reworded(each, key) for each in value]
    return value.replace("teacher", "reference") if isinstance(value, str) and key in _WORDED else value


def require_scores(folder: Path) -> Comparison:
    """A run's comparison. Raises `RunFolderError` where it was not compared or the file is damaged."""
    scores = read_scores(folder)
    if scores is None or not (folder / "answers.jsonl").is_file():
        document = students.recipe(folder)
        lacks = bool(document) and document.get("compare") is None
        remedy = "its recipe has no section `compare`" if lacks else f"type: distill compare {folder}"
        raise RunFolderError(f"{folder} was not compared yet; {remedy}")
    return scores
