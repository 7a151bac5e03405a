"""What scores.json says of each measure: means and differences with intervals, and the share of the gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.comparing import MODELS
from distill.comparing.found import Found
from distill.comparing.headline import headline
from distill.metrics import Answered, Measure, Model, ModelMetric, TextMetric
from distill.stats import Gap, Refused, gap_closed, mean_interval, paired_difference


def summary(found: Found, metrics: Sequence[TextMetric | ModelMetric], seed: int) -> dict[str, Any]:
    """What scores.json says beside the counts: entries of the measures, shares of cut answers, notes, the headline."""
    entries = {
        measure.name: _entry(found, measure, seed) for metric in metrics for measure in metric.measures if found.prompts
    }
    if not found.prompts:
        found.notes.append("there are no held-out prompts; set collect.test to 32 or more")
    cut = {model: _share_cut(list(answers.values())) for model in MODELS if (answers := found.answers.get(model))}
    return {
        "metrics": entries,
        "cut_share": cut,
        "notes": found.notes,
        "headline": headline(len(found.prompts), entries),
    }


def _share_cut(answers: Sequence[Answered]) -> float:
    return sum(answer.finish == "length" for answer in answers) / len(answers)


def _entry(found: Found, measure: Measure, seed: int) -> dict[str, Any]:
    """A measure's entry in scores.json."""
    values = {model: values for model in MODELS if (values := found.values(measure, model))}
    gap, target, note = _gap(measure, values, seed)
    notes = [text for text in (found.metric_notes.get(measure.name), note) if text]
    return {
        "title": measure.title,
        "unit": measure.unit,
        "better": measure.better,
        "explanation": measure.explanation,
        "note": "; ".join(notes) or None,
        "by": {model: mean_interval(list(each.values()), seed=seed) for model, each in values.items()},
        "student_minus_base": _difference(values, seed),
        "gap_closed": gap,
        "gap_target": target,
    }


def _difference(values: Mapping[Model, Mapping[int, float]], seed: int) -> Any:
    student, base = _paired(values, "student", "base")
    return paired_difference(student, base, seed=seed)


def _gap(
    measure: Measure, values: Mapping[Model, Mapping[int, float]], seed: int
) -> tuple[Gap | None, Model | None, str | None]:
    """The share of the gap, what it is the gap to, and why there is none.

    Where the teacher's first answer is what is compared with, its second is the end of the way. A measure that is
    better near 1 has two sides to come from, and no share.
    """
    target: Model = "teacher" if "teacher" in values else "teacher_again"
    if measure.better == "near 1" or not {"base", "student", target} <= values.keys():
        return None, None, None
    base, student, end = _paired(values, "base", "student", target)
    gap = gap_closed(base, student, end, seed=seed)
    return (None, None, f"no share of the gap: {gap.reason}") if isinstance(gap, Refused) else (gap, target, None)


def _paired(values: Mapping[Model, Mapping[int, float]], *models: Model) -> list[list[float]]:
    """One list a model, over the prompts that all of them have, in order."""
    rows = [values.get(model, {}) for model in models]
    common = [index for index in rows[0] if all(index in row for row in rows)]
    return [[row[index] for index in common] for row in rows]
