"""Summary for scores.json: per measure, means and differences with intervals and p-values, by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from distill.compare.metrics import Measure, ModelAnswer
from distill.compare.prompts import same_questions
from distill.compare.results import JUDGED, NAMES, ComparisonResults
from distill.compare.stats import (
    MIN_PROMPTS,
    Difference,
    Gap,
    Interval,
    Misleading,
    by_category,
    gap_closed,
    mean_interval,
    paired_difference,
    power_entry,
    sign_flip_p,
)
from distill.types import MODELS, Model

POINTS = 0.05
"""Difference for the power estimate: five points of a share, or five hundredths of the gap."""

Values = Mapping[Model, Mapping[int, float]]
"""A measure's numbers by model and prompt."""


def summary(
    results: ComparisonResults,
    entries: Mapping[str, Mapping[str, Any]],
    lead: Measure | None,
    *,
    notes: Sequence[str],
    usd: float | None,
    own: bool,
) -> dict[str, Any]:
    """The part of scores.json about the measures: `entries`, categories, power, notes, the headline.

    `lead` is the measure that the headline begins with; `usd` the cost of the comparison, to estimate that of a larger
    one; `own`: the prompts are the run's held-out rows, not a file's.
    """
    cut = {model: _cut_share(list(answers.values())) for model in MODELS if (answers := results.answers.get(model))}
    name = lead.name if lead is not None else None
    return {
        "metrics": entries,
        "lead": name,
        "categories": dict(Counter(results.prompts[index].category for index in results.shared).most_common()),
        "cut_share": {model: share for model, share in cut.items() if share is not None},
        "power": _power(results, lead, entries, usd) if lead is not None else None,
        "notes": notes,
        "headline": headline(len(results.shared), entries, name, own=own),
    }


def with_judge(summary: Mapping[str, Any], judged: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with a judge's entry: the headline begins with its verdict, if it has one."""
    verdict = f"{judged['verdict']}. " if judged["verdict"] is not None else ""
    return {
        **summary,
        "headline": f"{verdict}{summary['headline']}",
        "judge": judged,
        "power": judged["power"] or summary["power"],
    }


def leading(measures: Sequence[Measure], entries: Mapping[str, Mapping[str, Any]]) -> Measure | None:
    """The measure that the headline begins with.

    One of right answers, else a likeness with a share of the gap, else any likeness, else any measure with a direction.
    """
    candidates = [
        one for one in measures if one.name in entries and entries[one.name]["student_minus_base"] is not None
    ]
    right = [one for one in candidates if one.correctness]
    likenesses = [one for one in candidates if one.likeness]
    shares = [one for one in likenesses if entries[one.name]["gap_closed"] is not None]
    return next(iter([*right, *shares, *likenesses, *(one for one in candidates if one.better != "near 1")]), None)


def _cut_share(answers: Sequence[ModelAnswer]) -> float | None:
    """Share of answers cut at the token limit, among those whose end is known; `None` where there are none."""
    with_end = [answer for answer in answers if answer.finish != "unknown"]
    return sum(answer.finish == "length" for answer in with_end) / len(with_end) if with_end else None


# A measure


def entry_of(
    results: ComparisonResults, measure: Measure, seed: int, *, absent: str | None, leaked: Collection[int]
) -> dict[str, Any]:
    """A measure's entry in scores.json. `absent`: why it has no value; `leaked`: indices of leaked prompts."""
    values = {model: values for model in MODELS if (values := results.values(measure, model))}
    figures = _figures(measure, values, seed)
    entry = {
        "title": measure.title,
        "unit": measure.unit,
        "better": measure.better,
        "explanation": measure.explanation,
        **({"correctness": True} if measure.correctness else {}),
        "note": "; ".join(filter(None, [absent and f"absent: {absent}", figures.pop("note")])) or None,
        **figures,
        "categories": by_category(
            {index: results.prompts[index].category for index in results.shared},
            lambda indices: _figures(measure, _within(values, set(indices)), seed),
        ),
    }
    if leaked:
        clean = set(range(len(results.prompts))).difference(leaked)
        entry["clean"] = _figures(measure, _within(values, clean), seed)
        entry["leaked"] = _figures(measure, _within(values, leaked), seed)
    return entry


def _figures(measure: Measure, values: Values, seed: int) -> dict[str, Any]:
    """Means by model, the student's difference from the base with its p, and the share of the gap."""
    student, base = _common_values(values, "student", "base")
    gap, target, note = _gap(measure, values, seed)
    before: dict[str, Difference | None] = {}
    if "previous" in values:
        before["student_minus_previous"] = paired_difference(*_common_values(values, "student", "previous"), seed=seed)
    return {
        "by": {model: mean_interval(list(each.values()), seed=seed) for model, each in values.items()},
        "student_minus_base": paired_difference(student, base, seed=seed),
        **before,
        "p": sign_flip_p(student, base, seed=seed),
        "gap_closed": gap,
        "gap_target": target,
        "note": note,
    }


def _within(values: Values, indices: Collection[int]) -> dict[Model, dict[int, float]]:
    """The numbers on these prompts; models without any are left out."""
    parts = {model: {at: one for at, one in each.items() if at in indices} for model, each in values.items()}
    return {model: part for model, part in parts.items() if part}


def _gap(measure: Measure, values: Values, seed: int) -> tuple[Gap | None, Model | None, str | None]:
    """The share of the gap, the model at its end, and why there is no share.

    A measure that is best near 1 can be approached from two sides, so it has no share.
    """
    target = _target(values)
    if measure.better == "near 1" or not {"base", "student"} <= values.keys():
        return None, None, None
    if target not in values:
        return None, None, "no share of the gap: the teacher's second answers are not there to show how far it goes"
    base, student, end = _common_values(values, "base", "student", target)
    gap = gap_closed(base, student, end, seed=seed)
    return (None, None, f"no share of the gap: {gap.reason}") if isinstance(gap, Misleading) else (gap, target, None)


def _target(values: Values) -> Model:
    """The end of the gap: the teacher, or its second answers where a measure compares with its first ones."""
    return "teacher" if "teacher" in values else "teacher_again"


def _common_values(values: Values, *models: Model) -> list[list[float]]:
    """One list per model, over the prompts that all of them have, in order."""
    rows = [values.get(model, {}) for model in models]
    common = [index for index in rows[0] if all(index in row for row in rows)]
    return [[row[index] for index in common] for row in rows]


# A prompt, and how many more


def outcomes_by(results: ComparisonResults, lead: Measure) -> dict[int, dict[str, Any]]:
    """The `outcome` per prompt: whether the student does better than the base, by the leading measure."""
    sign = -1.0 if lead.better == "lower" else 1.0
    student, base = results.values(lead, "student"), results.values(lead, "base")
    outcomes = {}
    for index in student.keys() & base.keys():
        margin = sign * (student[index] - base[index])
        value = "win" if margin > 0 else "loss" if margin < 0 else "tie"
        outcomes[index] = {"by": lead.name, "against": "base", "value": value, "margin": margin}
    return outcomes


def _power(
    results: ComparisonResults, lead: Measure, entries: Mapping[str, Mapping[str, Any]], usd: float | None
) -> dict[str, Any] | None:
    """Number of prompts needed to show a difference of five points between two students, and their cost."""
    values = {model: results.values(lead, model) for model in MODELS}
    student, base = _common_values(values, "student", "base")
    difference, what = _five_points(lead, entries[lead.name], values)
    if difference is None:
        return None
    explanation = (
        f"prompts that would show {what} four times of five, from the spread of the paired differences over these "
        f"{len(student)}"
    )
    differences = [a - b for a, b in zip(student, base, strict=True)]
    return power_entry(lead.name, differences, difference, usd / len(results.prompts) if usd else None, explanation)


def _five_points(lead: Measure, entry: Mapping[str, Any], values: Values) -> tuple[float | None, str]:
    if lead.unit in {"share", ""}:
        return POINTS, f"a difference of {POINTS} in {lead.title}"
    base, end = _common_values(values, "base", _target(values))
    distance: Difference | None = paired_difference(end, base) if entry["gap_closed"] is not None else None
    if distance is None:
        return None, ""
    return POINTS * abs(distance.mean), f"{POINTS:.0%} of the gap in {lead.title}"


def headline(prompts: int, metrics: Mapping[str, Mapping[str, Any]], lead: str | None, *, own: bool = True) -> str:
    """One sentence on how near the student is to the teacher, from the entries of scores.json, `lead` first.

    `own`: the prompts were held out of training by this run.
    """
    if not prompts:
        return "There are no held-out prompts, so nothing was compared; set collect.test to 32 or more."
    likeness = _likeness(metrics.get("rouge_l")) if lead != "rouge_l" or metrics[lead]["gap_closed"] is not None else ""
    pieces = [
        _lead_of_page(prompts, metrics.get(lead or ""), "held-out prompt" if own else "prompt"),
        likeness,
        _manner(metrics),
    ]
    return "; ".join(piece for piece in pieces if piece) + "."


def _lead_of_page(prompts: int, entry: Mapping[str, Any] | None, what: str) -> str:
    """The right answers; else the share of the gap, else the difference."""
    if entry is None:
        return (
            f"The student was compared on {_prompts_of(prompts, prompts, what)}, but no measure has a value for both "
            "it and its base"
        )
    if entry.get("correctness"):
        teacher = f", and the teacher has {_number(entry['by']['teacher'].mean)}" if "teacher" in entry["by"] else ""
        return f"On {_prompts_of(entry['student_minus_base'].n, prompts, what)}: {_against_base(entry, teacher)}"
    if (gap := entry["gap_closed"]) is not None:
        end = "the teacher" if entry["gap_target"] == "teacher" else "the teacher's own second answers"
        interval = f"95% CI {_percent(gap.low)} to {_percent(gap.high)}"
        return (
            f"The student closes {_percent(gap.share)} ({interval}) of the gap in {entry['title']} between the "
            f"untrained base and {end} on {_prompts_of(gap.n, prompts, what)}"
        )
    return f"On {_prompts_of(entry['student_minus_base'].n, prompts, what)}: {_against_base(entry)}"


def _prompts_of(some: int, all_: int, what: str) -> str:
    plural = "" if all_ == 1 else "s"
    return f"{all_} {what}{plural}" if some == all_ else f"{some} of {all_} {what}s"


def _against_base(entry: Mapping[str, Any], more: str = "") -> str:
    by, difference = entry["by"], entry["student_minus_base"]
    doubt = "" if difference.excludes_zero else ", so it may be none"
    if doubt and not difference.low <= 0 <= difference.high:
        doubt = f", too few prompts to tell: at least {MIN_PROMPTS} are needed"
    interval = f"95% CI {_number(difference.low)} to {_number(difference.high)}"
    return (
        f"{entry['title']} {_number(by['student'].mean)} against the base's {_number(by['base'].mean)} "
        f"(difference {_number(difference.mean, sign='+')}, {interval}{doubt}{more})"
    )


def _likeness(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["student_minus_base"] is None:
        return ""
    again: Interval | None = entry["by"].get("teacher_again")
    return _against_base(entry, f"; the teacher's own second answer: {_number(again.mean)}" if again else "")


def _manner(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The student's stop rate and repetition."""
    pieces = []
    for name, phrase, form in (("stopped", "it stops by itself in", _percent), ("repetition", "repetition", _number)):
        by = metrics[name]["by"] if name in metrics else {}
        if "student" in by:
            of = " of answers" if name == "stopped" else ""
            teacher = f" (teacher {form(by['teacher'].mean)})" if "teacher" in by else ""
            pieces.append(f"{phrase} {form(by['student'].mean)}{of}{teacher}")
    return ", ".join(pieces)


def _number(value: float, *, sign: str = "") -> str:
    return f"{value:{sign}z.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:z.0f}%".replace("-", "−")


ALIKE = 0.2
"""Least share of equal answers of two models that a note mentions."""


def absence_notes(measures: Sequence[Measure], absent: Mapping[str, str]) -> Iterator[str]:
    """A note for each reason, with the measures that are `absent` for it."""
    for reason in dict.fromkeys(absent.values()):
        yield f"{', '.join(one.title for one in measures if absent.get(one.name) == reason)}: {reason}"


def remarks(
    results: ComparisonResults, measures: Sequence[Measure], entries: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Notes on what weakens the numbers: repeated prompts, empty or equal answers, measures without values."""
    prompts = len(results.shared)
    if repeats := same_questions([results.prompts[index] for index in results.shared]):
        yield (
            f"{repeats} of {prompts} prompts ask what another one asks; they are no independent evidence, so the "
            "intervals are too narrow"
        )
    texts = {model: _texts(results, model) for model in JUDGED}
    for model, each in texts.items():
        if empty := sum(not text for text in each.values()):
            yield f"{NAMES[model]} gave an empty answer to {empty} of {len(each)} prompts"
    for one, other in combinations(JUDGED, 2):
        both = texts[one].keys() & texts[other].keys()
        same = sum(texts[one][index] == texts[other][index] != "" for index in both)
        if both and same >= ALIKE * len(both):
            yield f"{NAMES[one]} and {NAMES[other]} gave the same answer to {same} of {len(both)} prompts"
    if not results.prompts:
        yield "there are no held-out prompts; set collect.test to 32 or more"
    if titles := [one.title for one in measures if not entries[one.name]["by"]]:
        yield f"no answer has a value by: {', '.join(titles)}; what they look at is not known of these answers"


def _texts(results: ComparisonResults, model: Model) -> dict[int, str]:
    indices = set(results.shared)
    return {index: answer.text for index, answer in results.answers.get(model, {}).items() if index in indices}
