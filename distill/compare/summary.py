"""Summary for scores.json: per measure, means and differences with intervals and p-values, by category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from distill.compare.metrics import Measure, Model, ModelAnswer, ModelMetric, TextMetric
from distill.compare.prompts import same_questions
from distill.compare.results import MODELS, NAMES, ComparisonResults
from distill.compare.stats import (
    Difference,
    Gap,
    Interval,
    Misleading,
    gap_closed,
    holm,
    mean_interval,
    paired_difference,
    prompts_needed,
    sign_flip_p,
)

POINTS = 0.05
"""The difference whose price is told: five points of a share, or five hundredths of the gap."""

Values = Mapping[Model, Mapping[int, float]]
"""A measure's numbers by model and prompt."""


def summary(
    results: ComparisonResults,
    metrics: Sequence[TextMetric | ModelMetric],
    seed: int,
    usd: float | None = None,
    *,
    own: bool = True,
) -> dict[str, Any]:
    """What scores.json says beside the counts: entries of the measures, categories, power, notes, the headline.

    `usd` is what the comparison cost, for the price of a larger one; `own`: the prompts are the run's held-out rows,
    and no file's. Tells in `results` how each prompt came out by the
    measure that leads.
    """
    measures = [measure for metric in metrics for measure in metric.measures]
    entries = {measure.name: _entry(results, measure, seed) for measure in measures if results.prompts}
    if not results.prompts:
        results.notes.append("there are no held-out prompts; set collect.test to 32 or more")
    results.notes += unmeasured([one for one in measures if one.name not in results.metric_notes], entries)
    lead = _lead(measures, entries)
    if lead is not None:
        _record_outcomes(results, lead)
    cut = {model: _share_cut(list(answers.values())) for model in MODELS if (answers := results.answers.get(model))}
    return {
        "metrics": entries,
        "lead": lead.name if lead is not None else None,
        "categories": dict(Counter(results.prompts[index].category for index in results.shared).most_common()),
        "cut_share": {model: share for model, share in cut.items() if share is not None},
        "power": _power(results, lead, entries, usd) if lead is not None else None,
        "notes": results.notes,
        "headline": headline(len(results.shared), entries, lead.name if lead is not None else None, own=own),
    }


def with_judge(info: Mapping[str, Any], judged: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in the summary where a judge has spoken: the headline starts with its verdict, if it has one."""
    added = {"judge": judged, "power": judged["power"] or info["power"]}
    if judged["verdict"] is None:
        return added
    return {**added, "headline": f"{judged['verdict']}. {info['headline']}"}


def _lead(measures: Sequence[Measure], entries: Mapping[str, Mapping[str, Any]]) -> Measure | None:
    """What the headline starts with: a likeness with a share of the gap, any likeness, else what has a direction."""
    info = [one for one in measures if one.name in entries and entries[one.name]["student_minus_base"] is not None]
    shares = [one for one in info if one.likeness and entries[one.name]["gap_closed"] is not None]
    directed = [one for one in info if one.better != "near 1"]
    return next((one for some in (shares, [one for one in info if one.likeness], directed) for one in some), None)


def _share_cut(answers: Sequence[ModelAnswer]) -> float | None:
    """Of the answers of which it is known how they ended."""
    known = [answer for answer in answers if answer.finish != "unknown"]
    return sum(answer.finish == "length" for answer in known) / len(known) if known else None


# A measure


def _entry(results: ComparisonResults, measure: Measure, seed: int) -> dict[str, Any]:
    """A measure's entry in scores.json."""
    values = {model: values for model in MODELS if (values := results.values(measure, model))}
    figures = _figures(measure, values, seed)
    notes = [text for text in (results.metric_notes.get(measure.name), figures.pop("note")) if text]
    entry = {
        "title": measure.title,
        "unit": measure.unit,
        "better": measure.better,
        "explanation": measure.explanation,
        "note": "; ".join(notes) or None,
        **figures,
        "categories": _by_category(results, measure, values, seed),
    }
    leaked = {index for index, info in results.more.items() if info.get("leak", {}).get("leaked")}
    if leaked:
        clean = set(range(len(results.prompts))) - leaked
        entry["clean"] = _figures(measure, _within(values, clean), seed)
        entry["leaked"] = _figures(measure, _within(values, leaked), seed)
    return entry


def _figures(measure: Measure, values: Values, seed: int) -> dict[str, Any]:
    """Means, the student's difference from the base with its p, and the share of the gap, over the prompts given."""
    student, base = _paired(values, "student", "base")
    gap, target, note = _gap(measure, values, seed)
    return {
        "by": {model: mean_interval(list(each.values()), seed=seed) for model, each in values.items()},
        "student_minus_base": paired_difference(student, base, seed=seed),
        "p": sign_flip_p(student, base, seed=seed),
        "gap_closed": gap,
        "gap_target": target,
        "note": note,
    }


def _by_category(results: ComparisonResults, measure: Measure, values: Values, seed: int) -> dict[str, Any]:
    """The same by category, where there are several; `p_holm` is adjusted for looking at all of them (Holm, 1979)."""
    members: dict[str, set[int]] = {}
    for index in results.shared:
        members.setdefault(results.prompts[index].category, set()).add(index)
    if len(members) < 2:
        return {}
    entries = {
        name: {"n": len(indices), **_figures(measure, _within(values, indices), seed)}
        for name, indices in sorted(members.items())
    }
    tested = [name for name, entry in entries.items() if entry["p"] is not None]
    adjusted = dict(zip(tested, holm([entries[name]["p"] for name in tested]), strict=True))
    return {name: {**entry, "p_holm": adjusted.get(name)} for name, entry in entries.items()}


def _within(values: Values, indices: Collection[int]) -> dict[Model, dict[int, float]]:
    """The numbers of these prompts; a model without any is left out."""
    chosen = {model: {at: one for at, one in each.items() if at in indices} for model, each in values.items()}
    return {model: each for model, each in chosen.items() if each}


def _gap(measure: Measure, values: Values, seed: int) -> tuple[Gap | None, Model | None, str | None]:
    """The share of the gap, what it is the gap to, and why there is none.

    A measure that is better near 1 has two sides to come from, and no share.
    """
    target = _target(values)
    if measure.better == "near 1" or not {"base", "student"} <= values.keys():
        return None, None, None
    if target not in values:
        return None, None, "no share of the gap: the teacher's second answers are not there to show how far it goes"
    base, student, end = _paired(values, "base", "student", target)
    gap = gap_closed(base, student, end, seed=seed)
    return (None, None, f"no share of the gap: {gap.reason}") if isinstance(gap, Misleading) else (gap, target, None)


def _target(values: Values) -> Model:
    """The end of the way: the teacher, or its second answer where its first is what is compared with."""
    return "teacher" if "teacher" in values else "teacher_again"


def _paired(values: Values, *models: Model) -> list[list[float]]:
    """One list a model, over the prompts that all of them have, in order."""
    rows = [values.get(model, {}) for model in models]
    common = [index for index in rows[0] if all(index in row for row in rows)]
    return [[row[index] for index in common] for row in rows]


# A prompt, and how many more


def _record_outcomes(results: ComparisonResults, lead: Measure) -> None:
    """Say of each prompt whether the student does better there than the base, by the measure that leads."""
    sign = -1.0 if lead.better == "lower" else 1.0
    student, base = results.values(lead, "student"), results.values(lead, "base")
    for index in student.keys() & base.keys():
        margin = sign * (student[index] - base[index])
        value = "win" if margin > 0 else "loss" if margin < 0 else "tie"
        results.record(index, "outcome", {"by": lead.name, "against": "base", "value": value, "margin": margin})


def _power(
    results: ComparisonResults, lead: Measure, entries: Mapping[str, Mapping[str, Any]], usd: float | None
) -> dict[str, Any] | None:
    """How many prompts would show a difference of five points between two students, and what they would cost."""
    values = {model: results.values(lead, model) for model in MODELS}
    student, base = _paired(values, "student", "base")
    difference, what = _five_points(lead, entries[lead.name], values)
    if difference is None:
        return None
    needed = prompts_needed([a - b for a, b in zip(student, base, strict=True)], difference)
    each = usd / len(results.prompts) if usd and results.prompts else None
    return {
        "measure": lead.name,
        "difference": difference,
        "prompts": needed,
        "usd": None if needed is None or each is None else needed * each,
        "explanation": f"prompts that would show {what} four times of five, from the spread of the paired differences "
        f"over these {len(student)}",
    }


def _five_points(lead: Measure, entry: Mapping[str, Any], values: Values) -> tuple[float | None, str]:
    if lead.unit in {"share", ""}:
        return POINTS, f"a difference of {POINTS} in {lead.title}"
    base, end = _paired(values, "base", _target(values))
    distance: Difference | None = paired_difference(end, base) if entry["gap_closed"] is not None else None
    if distance is None:
        return None, ""
    return POINTS * abs(distance.mean), f"{POINTS:.0%} of the gap in {lead.title}"


def headline(prompts: int, metrics: Mapping[str, Mapping[str, Any]], lead: str | None, *, own: bool = True) -> str:
    """One sentence on how far the student came, from the entries of scores.json; `lead` names the one to start with.

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
    """The share of the gap, else the difference."""
    if entry is None:
        return (
            f"The student was compared on {_prompts_of(prompts, prompts, what)}, but no measure has a value for both "
            "it and its base"
        )
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
    """Whether it stops, and whether it goes round in circles."""
    reply = []
    for name, words, written in (("stopped", "it stops by itself in", _percent), ("repetition", "repetition", _number)):
        by = metrics[name]["by"] if name in metrics else {}
        if "student" in by:
            of = " of answers" if name == "stopped" else ""
            teacher = f" (teacher {written(by['teacher'].mean)})" if "teacher" in by else ""
            reply.append(f"{words} {written(by['student'].mean)}{of}{teacher}")
    return ", ".join(reply)


def _number(value: float, *, sign: str = "") -> str:
    return f"{value:{sign}z.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:z.0f}%".replace("-", "−")


ALIKE = 0.2
"""The share of prompts from which it is told that two models gave the same text."""
COMPARED: tuple[Model, ...] = ("base", "student", "teacher")


def remarks(results: ComparisonResults) -> Iterator[str]:
    """A line for each thing that weakens the numbers."""
    prompts = len(results.shared)
    if repeats := same_questions([results.prompts[index] for index in results.shared]):
        yield (
            f"{repeats} of {prompts} prompts ask what another one asks; they are no independent evidence, so the "
            "intervals are too narrow"
        )
    texts = {model: _texts(results, model) for model in COMPARED}
    for model, each in texts.items():
        if empty := sum(not text for text in each.values()):
            yield f"{NAMES[model]} gave an empty answer to {empty} of {len(each)} prompts"
    for one, other in combinations(COMPARED, 2):
        both = texts[one].keys() & texts[other].keys()
        same = sum(texts[one][index] == texts[other][index] != "" for index in both)
        if both and same >= ALIKE * len(both):
            yield f"{NAMES[one]} and {NAMES[other]} gave the same answer to {same} of {len(both)} prompts"


def _texts(results: ComparisonResults, model: Model) -> dict[int, str]:
    shared = set(results.shared)
    return {index: answer.text for index, answer in results.answers.get(model, {}).items() if index in shared}


def unmeasured(measures: Sequence[Measure], entries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line on the measures that no answer has a value for."""
    if titles := [one.title for one in measures if one.name in entries and not entries[one.name]["by"]]:
        yield f"no answer has a value by: {', '.join(titles)}; what they look at is not known of these answers"
