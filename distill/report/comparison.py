"""Comparison sections of the report: headline chart, metrics, categories, judge, reasons for trust."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.report.numbers import AxisScale, Row, ShownInterval, finite, fixed, interval_of, number, percent, shown
from distill.report.run_sections import counts
from distill.types import MODELS

TITLES: dict[str, str] = {model: model.replace("_", " ").capitalize() for model in MODELS}
"""Column heads of the answers, in order; the base is the student before training."""
EXTREMES = 3
"""Categories shown of the best, and of the worst."""
CLEAR = 0.05
"""The adjusted p below which a category is coloured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One row of the metrics table, or of a category's below it."""

    name: str
    title: str
    unit: str
    better: str
    """`lower`, `higher`, `near 1` or `teacher` (the nearer to the teacher's); empty where it is not known."""
    explanation: str
    note: str | None
    by: dict[str, ShownInterval]
    difference: ShownInterval | None
    """Student minus base."""
    judgement: str | None
    """`better` or `worse` where the difference is more than noise, `unclear` where not, None without one."""
    p: float | None
    """Of the difference, by sign flips; in a category, adjusted for looking at all of them."""
    gap: ShownInterval | None
    """Share of the way from base to teacher; 1 is all of it."""
    decimals: int
    """Three figures of the greatest mean, and no more than three decimals."""
    parts: tuple[tuple[str, int | None, MetricRow], ...] = ()
    """Categories, and prompts without those that were leaked: their names, numbers of prompts, and the same measure."""


def metric_of(name: str, entry: Row, whole: Row | None = None) -> MetricRow:
    """A measure as scores.json has it; `whole` is the measure's entry where this is a part of its prompts."""
    info = {**(whole or {}), **entry}
    by = {model: value for model in TITLES if (value := interval_of((entry.get("by") or {}).get(model)))}
    greatest = max((abs(value.mean) for value in by.values()), default=0)
    return MetricRow(
        name=name,
        title=info.get("title") or name,
        unit=info.get("unit") or "",
        better=info.get("better") or "",
        explanation=info.get("explanation") or "",
        note=entry.get("note"),
        by=by,
        difference=interval_of(entry.get("student_minus_base")),
        judgement=_judgement(info.get("better"), by, entry),
        p=finite(entry.get("p_holm", entry.get("p"))),
        gap=interval_of(entry.get("gap_closed"), "share"),
        decimals=0 if greatest >= 1000 else 1 if greatest >= 100 else 2 if greatest >= 1 else 3,
        parts=() if whole is not None else tuple(_parts(name, entry)),
    )


def _parts(name: str, entry: Row) -> list[tuple[str, int | None, MetricRow]]:
    parts = [
        (category, part.get("n"), metric_of(name, part, entry))
        for category, part in (entry.get("categories") or {}).items()
        if part.get("by")
    ]
    for key, title in (("clean", "without leaked prompts"), ("leaked", "leaked prompts alone")):
        if (part := entry.get(key)) and part.get("by"):
            parts.append((title, None, metric_of(name, part, entry)))
    return parts


def _judgement(better: str | None, by: Mapping[str, ShownInterval], entry: Row) -> str | None:
    """By the interval; of several that are looked at together by the adjusted p as well."""
    difference = entry.get("student_minus_base")
    if not difference or interval_of(difference) is None:
        return None
    gain = _gain(better, by, difference)
    adjusted = finite(entry.get("p_holm"))
    if gain == 0 or not difference.get("excludes_zero") or (adjusted or 0.0) >= CLEAR:
        return "unclear"
    return "better" if gain > 0 else "worse"


def _gain(better: str | None, by: Mapping[str, ShownInterval], difference: Row) -> float:
    """By how much the student is better than the base; 0 where no direction is."""
    aims = {"near 1": 1.0, **({"teacher": by["teacher"].mean} if "teacher" in by else {})}
    if better in aims and {"base", "student"} <= by.keys():
        return abs(by["base"].mean - aims[better]) - abs(by["student"].mean - aims[better])
    return float({"higher": difference["mean"], "lower": -difference["mean"]}.get(better or "", 0))


def gap(metrics: Sequence[MetricRow], lead: str | None) -> dict[str, Any] | None:
    """The drawing under the headline: the measure that leads, else the first whose share of the gap is known."""
    drawable = [metric for metric in metrics if {"base", "student"} <= metric.by.keys()]
    if not drawable:
        return None
    leading = [metric for metric in drawable if metric.name == lead]
    metric = next((metric for metric in leading or drawable if metric.gap), (leading or drawable)[0])
    ends = [end for value in metric.by.values() for end in value.known]
    margin = (max(ends) - min(ends)) * 0.04
    return {"metric": metric, "scale": AxisScale(min(ends) - margin, max(ends) + margin, flip=metric.better == "lower")}


# Categories


@dataclass(frozen=True, slots=True)
class Category:
    """How the student fares on prompts of one kind."""

    name: str
    n: int
    value: ShownInterval
    clear: bool
    """Whether it is more than noise, after looking at all categories."""
    good: bool
    """Whether it is on the good side."""


def extremes(scores: Row) -> dict[str, Any] | None:
    """The best and the worst categories, by the judge where one spoke, else by the measure that leads."""
    pair = ((scores.get("judge") or {}).get("pairs") or {}).get("student:teacher") or {}
    if pair.get("categories") and not (scores.get("judge") or {}).get("withheld"):
        found, what = _judged(pair["categories"]), "win rate against the teacher (50% is as good as the teacher)"
        shown: Any = percent
    else:
        entry = (scores.get("metrics") or {}).get(scores.get("lead") or "") or {}
        found, what = _measured(entry), f"student less base in {entry.get('title')}"
        shown = _signed
    if len(found) < 2:
        return None
    ranked = sorted(found, key=lambda pair: -pair[0])
    half = min(EXTREMES, len(ranked) // 2)
    best, worst = [one for _, one in ranked[:half]], [one for _, one in reversed(ranked[-half:])]
    return {"what": what, "best": best, "worst": worst, "shown": shown}


def _signed(value: float | None) -> str | None:
    return fixed(value, 2, signed=True)


def _judged(info: Row) -> list[tuple[float, Category]]:
    found = []
    for name, entry in info.items():
        if (value := interval_of(entry.get("win_rate"))) is not None:
            clear = (finite(entry.get("p_holm")) or 1.0) < CLEAR
            found.append((value.mean, Category(name, entry.get("n") or 0, value, clear, value.mean >= 0.5)))
    return found


def _measured(entry: Row) -> list[tuple[float, Category]]:
    found = []
    for name, part in (entry.get("categories") or {}).items():
        difference = part.get("student_minus_base")
        if (value := interval_of(difference)) is not None:
            by = {model: info for model in TITLES if (info := interval_of((part.get("by") or {}).get(model)))}
            gain = _gain(entry.get("better"), by, difference)
            clear = (finite(part.get("p_holm")) or 1.0) < CLEAR
            found.append((gain, Category(name, part.get("n") or 0, value, clear, gain > 0)))
    return found


# The judge


def judge(scores: Row) -> dict[str, Any] | None:
    """What the judge said of each pair, raw and at equal length, and its grades; None where there was none."""
    info = scores.get("judge") or {}
    pairs = [_judged_pair(name, pair) for name, pair in (info.get("pairs") or {}).items()]
    single = (info.get("single") or {}).items()
    grades = [(TITLES[model], interval_of(one.get("grade")), one.get("unparsed")) for model, one in single]
    if not pairs and not grades:
        return None
    difference = interval_of(info.get("student_minus_base"))
    return {"pairs": pairs, "grades": grades, "withheld": info.get("withheld"), "difference": difference}


def _judged_pair(name: str, pair: Row) -> dict[str, Any]:
    one, _, other = name.partition(":")
    return {
        "title": f"{one} against {other}",
        **{key: finite(pair.get(key)) for key in ("wins", "ties", "losses", "unparsed", "p")},
        "rate": interval_of(pair.get("win_rate")),
        "equal": interval_of(pair.get("length_controlled")),
        "why": pair.get("length_note"),
    }


# Tasks of the lm-evaluation-harness


def benchmarks(info: Row) -> dict[str, Any] | None:
    """The table of tasks that base and student did."""
    rows = [metric_of(name, entry) for name, entry in (info.get("entries") or {}).items()]
    keys = ("package", "limit", "chat")
    notes = info.get("notes") or []
    return {**{key: info.get(key) for key in keys}, "rows": rows, "notes": notes} if rows or notes else None


def _fell(info: Row) -> str | None:
    """Which tasks the student does worse than its base: what training cost."""
    found = benchmarks(info)
    if found is None or not found["rows"]:
        return None
    clear = [row for row in found["rows"] if row.judgement in ("better", "worse")]
    fell = [f"{row.title} {fixed(row.difference.mean, 2, signed=True)}" for row in clear if row.judgement == "worse"]
    rose = sum(row.judgement == "better" for row in clear)
    lost = f"worse than the base in {', '.join(fell)}" if fell else "no clear loss"
    return f"{lost}; {rose} of {len(found['rows'])} measures clearly better"


# Trust


def trust(scores: Row, stages: Row, metrics: Sequence[MetricRow]) -> list[tuple[str, str]]:
    """What a reader needs in order to believe the headline; only what the run's files say."""
    shares = {title: finite((scores.get("cut_share") or {}).get(model)) for model, title in TITLES.items()}
    cut = ", ".join(f"{title.lower()} {percent(share)}" for title, share in shares.items() if share is not None)
    facts = {
        "Judge": _judge(scores.get("judge") or {}),
        "The judge against itself": _audit((scores.get("judge") or {}).get("audit") or {}),
        "No verdict": (scores.get("judge") or {}).get("withheld"),
        "Held-out prompts" if scores.get("held_out", True) else "Prompts": _prompts(scores),
        "Right or wrong": _unjudged(scores),
        "Split": _split(stages),
        "Abilities (lm-eval)": _fell(scores.get("lm_eval") or {}),
        "Answers cut": cut,
        "Ceiling": _ceiling(scores, metrics),
        "To see 5 points": _power(scores.get("power") or {}),
        "Intervals": scores.get("method"),
    }
    return [(term, fact) for term, fact in facts.items() if fact]


def _judge(judge: Row) -> str | None:
    if not judge:
        return None
    kin = (judge.get("audit") or {}).get("same_family") or []
    warning = f"; of one family with the {' and the '.join(kin)}, and judges favour their own" if kin else ""
    return f"{judge.get('model')}, {judge.get('mode')}{warning}"


def _audit(audit: Row) -> str | None:
    """Consistency, bias and what a judge of length would say."""
    first = interval_of(audit.get("first_place"))
    longer = interval_of(audit.get("longer_would_say"))
    facts = (
        ("the same in both orders", percent(finite(audit.get("order_consistency")))),
        ("the same when asked again", percent(finite(audit.get("test_retest")))),
        ("takes the first shown", percent(first.mean) if first else None),
        ("takes the longer", percent(finite(audit.get("longer_wins")))),
        ("a judge of length alone would give the student", percent(longer.mean) if longer else None),
        ("unreadable", percent(finite(audit.get("unparsed")))),
    )
    return ", ".join(f"{title} {value}" for title, value in facts if value is not None) or None


def _prompts(scores: Row) -> str:
    leaks = scores.get("leaks") or {}
    prompts = number(finite(scores.get("prompts"))) or "some"
    if leaked := leaks.get("leaked"):
        return f"{prompts}, of which {number(leaked)} stand in the training rows; see the metrics without them"
    known = leaks or "leaks" not in scores
    return f"{prompts}, never trained on" if known else f"{prompts}; it is not known whether they were trained on"


def _unjudged(scores: Row) -> str | None:
    """Said where nothing looks at more than how answers sound (Gudibande et al., 2023)."""
    checked = ((scores.get("metrics") or {}).get("instructions") or {}).get("by")
    if scores.get("judge") or checked or scores.get("lm_eval"):
        return None
    return "not measured: no judge, no checked instructions; these numbers say how like the teacher the answers sound"


def _power(power: Row) -> str | None:
    needed = number(finite(power.get("prompts")))
    usd = finite(power.get("usd"))
    if needed is None:
        return None
    return f"{needed} {power.get('explanation')}" + (f"; about USD {fixed(usd, 2)}" if usd is not None else "")


def _split(stages: Row) -> str | None:
    by_rule = counts(stages, "curate").get("by_rule")
    if by_rule is None:
        return None
    near = sum(rows for reason, rows in by_rule.items() if reason.rpartition("/")[2] == "held_out")
    if near == 0:
        return "no training row was a near-duplicate of a held-out prompt"
    return f"{number(near)} near-duplicates of held-out prompts removed from the training rows"


def _ceiling(scores: Row, metrics: Sequence[MetricRow]) -> str | None:
    """The teacher's own second answer: no student can be expected to be more like the first one."""
    again = [metric for metric in metrics if "teacher_again" in metric.by]
    if not again:
        known = any("student" in metric.by for metric in metrics)
        return "not known: the teacher's second answers are not there to compare with" if known else None
    likeness = next((metric for metric in again if metric.name == "rouge_l"), again[0])
    info = described(scores, "teacher_again") or "the teacher asked a second time"
    return f"{info}; {likeness.title} {fixed(likeness.by['teacher_again'].mean, likeness.decimals)}"


def described(scores: Row, model: str) -> str | None:
    """What scores.json says that a model is."""
    entry = (scores.get("models") or {}).get(model) or {}
    return entry.get("description") or entry.get("model")


def facts(record: Row, base: Row, scores: Row, recipe: str) -> list[tuple[str, str]]:
    """What a reader needs in order to name, cite and repeat the run."""
    seed = re.search(r"^seed:\s*(\S+)", recipe, re.MULTILINE)
    facts = {
        "Run": record.get("name"),
        "Started": record.get("created"),
        "distill": record.get("version"),
        **{f"Teacher: {key.replace('_', ' ')}": value for key, value in (record.get("teacher") or {}).items()},
        **{f"Student: {key.replace('_', ' ')}": value for key, value in base.items()},
        **{f"Compared as {title.lower()}": described(scores, model) for model, title in TITLES.items()},
        "Seed": seed[1] if seed else None,
        "Recipe SHA-256": record.get("recipe_sha256"),
    }
    return [(term, text) for term, value in facts.items() if (text := shown(value)) not in (None, "", "{}", "[]")]
