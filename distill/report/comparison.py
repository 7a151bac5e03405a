"""Comparison sections of the report: headline chart, metrics, categories, judge, reasons for trust."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.report.numbers import AxisScale, Row, as_text, fixed, money, number, percent
from distill.run.record import RunRecord
from distill.run.scores import (
    TITLES,
    Comparison,
    Estimate,
    JudgeAudit,
    JudgedPair,
    JudgeScores,
    Measured,
    TaskScores,
    finite,
)

EXTREMES = 3
"""Categories shown at either end."""
CLEAR = 0.05
"""The adjusted p below which a category is coloured."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One row of the metrics table, or of a category's below it."""

    name: str
    measure: Measured
    judgement: str | None
    """`better` or `worse` where the difference is more than noise, `unclear` where not, None without one."""
    parts: Sequence[tuple[str, int | None, MetricRow]] = ()
    """Categories, and prompts without those that were leaked: their names, numbers of prompts, and the same measure."""

    @property
    def title(self) -> str:
        """Title of the measure."""
        return self.measure.title or self.name

    @property
    def p(self) -> float | None:
        """Sign-flip p of the difference; in a category, adjusted for looking at all of them."""
        return self.measure.p if self.measure.p_holm is None else self.measure.p_holm

    @property
    def decimals(self) -> int:
        """Decimals for three significant figures of the greatest mean, at most three."""
        greatest = max((abs(value.mean) for value in self.measure.by.values()), default=0)
        return 0 if greatest >= 1000 else 1 if greatest >= 100 else 2 if greatest >= 1 else 3


def metric_of(name: str, measure: Measured, better: str | None = None) -> MetricRow:
    """A measure's row; `better`, the whole measure's direction, is given for a part of its prompts."""
    parts = [] if better is not None else _parts(name, measure)
    return MetricRow(name, measure, _judgement(measure.better if better is None else better, measure), parts)


def _parts(name: str, measure: Measured) -> list[tuple[str, int | None, MetricRow]]:
    parts = [(category, part.n, part) for category, part in measure.categories.items()]
    leaks = (("without leaked prompts", measure.clean), ("leaked prompts alone", measure.leaked))
    parts += [(title, None, part) for title, part in leaks if part is not None]
    return [(title, n, metric_of(name, part, measure.better)) for title, n, part in parts if part.by]


def _judgement(better: str, measure: Measured) -> str | None:
    """By the interval, and for one of several measures by the adjusted p as well."""
    difference = measure.student_minus_base
    if difference is None:
        return None
    gain = _gain(better, measure.by, difference)
    if gain == 0 or not difference.excludes_zero or (measure.p_holm or 0.0) >= CLEAR:
        return "unclear"
    return "better" if gain > 0 else "worse"


def _gain(better: str, by: Mapping[str, Estimate], difference: Estimate) -> float:
    """By how much the student is better than the base; 0 without a direction."""
    aims = {"near 1": 1.0, **({"teacher": by["teacher"].mean} if "teacher" in by else {})}
    if better in aims and {"base", "student"} <= by.keys():
        return abs(by["base"].mean - aims[better]) - abs(by["student"].mean - aims[better])
    return {"higher": difference.mean, "lower": -difference.mean}.get(better, 0.0)


def gap(metrics: Sequence[MetricRow], lead: str | None) -> dict[str, Any] | None:
    """The chart under the headline: the leading measure, else the first whose share of the gap is known."""
    drawable = [metric for metric in metrics if {"base", "student"} <= metric.measure.by.keys()]
    if not drawable:
        return None
    leading = [metric for metric in drawable if metric.name == lead] or drawable
    metric = next((metric for metric in leading if metric.measure.gap_closed), leading[0])
    ends = [end for value in metric.measure.by.values() for end in value.ends]
    margin = (max(ends) - min(ends)) * 0.04
    flip = metric.measure.better == "lower"
    return {"metric": metric, "scale": AxisScale(min(ends) - margin, max(ends) + margin, flip=flip)}


# Categories


@dataclass(frozen=True, slots=True)
class Category:
    """How the student fares on prompts of one kind."""

    name: str
    n: int
    value: Estimate
    clear: bool
    """Whether it is significant after adjusting for all categories."""
    good: bool
    """Whether it is on the good side."""


def extremes(scores: Comparison) -> dict[str, Any] | None:
    """The best and the worst categories, by the judge where it gives a verdict, else by the measure that leads."""
    pair = scores.judge.pairs.get("student:teacher") if scores.judge and not scores.judge.withheld else None
    if pair is not None and pair.categories:
        categories, what = _by_judge(pair), "win rate against the teacher (50% is as good as the teacher)"
        form: Any = percent
    else:
        lead = scores.leading or Measured()
        categories, what = _by_measure(lead), f"student less base in {lead.title}"
        form = _with_sign
    if len(categories) < 2:
        return None
    best_first = sorted(categories, key=lambda pair: -pair[0])
    half = min(EXTREMES, len(best_first) // 2)
    best, worst = [one for _, one in best_first[:half]], [one for _, one in reversed(best_first[-half:])]
    return {"what": what, "best": best, "worst": worst, "shown": form}


def _with_sign(value: float | None) -> str | None:
    return fixed(value, 2, signed=True)


def _by_judge(pair: JudgedPair) -> list[tuple[float, Category]]:
    return [
        (rate.mean, Category(name, part.n or 0, rate, _is_clear(part.p_holm), rate.mean >= 0.5))
        for name, part in pair.categories.items()
        if (rate := part.win_rate) is not None
    ]


def _by_measure(measure: Measured) -> list[tuple[float, Category]]:
    gains = {
        name: _gain(measure.better, part.by, part.student_minus_base)
        for name, part in measure.categories.items()
        if part.student_minus_base is not None
    }
    return [
        (gain, Category(name, part.n or 0, part.student_minus_base, _is_clear(part.p_holm), gain > 0))
        for name, gain in gains.items()
        if (part := measure.categories[name]).student_minus_base is not None
    ]


def _is_clear(p_holm: float | None) -> bool:
    return p_holm is not None and p_holm < CLEAR


# The judge


def judge(judge: JudgeScores | None) -> dict[str, Any] | None:
    """The judge's verdicts per pair, raw and at equal length, and its grades; None without a judge."""
    if judge is None or not (judge.pairs or judge.single):
        return None
    pairs = {" against ".join(name.split(":")): pair for name, pair in judge.pairs.items()}
    grades = [(TITLES[model], one.grade, one.unparsed) for model, one in judge.single.items()]
    return {"pairs": pairs, "grades": grades, "withheld": judge.withheld, "difference": judge.student_minus_base}


# Tasks of the lm-evaluation-harness


def benchmarks(tasks: TaskScores | None) -> dict[str, Any] | None:
    """The table of lm-evaluation-harness tasks; None without tasks."""
    if tasks is None or not (tasks.entries or tasks.notes):
        return None
    return {"tasks": tasks, "rows": [metric_of(name, measure) for name, measure in tasks.entries.items()]}


def _losses(tasks: TaskScores | None) -> str | None:
    """Tasks on which the student does worse than its base."""
    table = benchmarks(tasks)
    if table is None or not table["rows"]:
        return None
    rows: list[MetricRow] = table["rows"]
    worse = [
        f"{row.title} {_with_sign(row.measure.student_minus_base.mean)}"
        for row in rows
        if row.judgement == "worse" and row.measure.student_minus_base is not None
    ]
    rose = sum(row.judgement == "better" for row in rows)
    losses_text = f"worse than the base in {', '.join(worse)}" if worse else "no clear loss"
    return f"{losses_text}; {rose} of {len(rows)} measures clearly better"


# Trust


def trust(scores: Comparison, record: RunRecord, metrics: Sequence[MetricRow]) -> list[tuple[str, str]]:
    """Facts that support or weaken the headline, from the run's files alone."""
    shares = [(title, percent(scores.cut_share.get(model))) for model, title in scores.titles.items()]
    facts = {
        "Judge": _judge(scores.judge),
        "The judge against itself": _audit(scores.judge.audit if scores.judge else None),
        "No verdict": scores.judge.withheld if scores.judge else None,
        "Held-out prompts" if scores.held_out else "Prompts": _prompts(scores),
        "Right or wrong": _correctness(scores),
        "Split": _split(record),
        "Abilities (lm-eval)": _losses(scores.lm_eval),
        "Answers cut": ", ".join(f"{title.lower()} {share}" for title, share in shares if share is not None),
        "Ceiling": _ceiling(scores, metrics),
        "To see 5 points": _power(scores.power or {}),
        "Intervals": scores.method,
    }
    return [(term, fact) for term, fact in facts.items() if fact]


def _judge(judge: JudgeScores | None) -> str | None:
    if judge is None:
        return None
    kin = judge.audit.same_family if judge.audit is not None else ()
    warning = f"; of one family with the {' and the '.join(kin)}, and judges favour their own" if kin else ""
    return f"{judge.model}, {judge.mode}{warning}"


def _audit(audit: JudgeAudit | None) -> str | None:
    """Consistency and biases of the judge, in one line."""
    if audit is None:
        return None
    first, longer = audit.first_place, audit.longer_would_say
    facts = (
        ("the same in both orders", audit.order_consistency),
        ("the same when asked again", audit.test_retest),
        ("takes the first shown", first.mean if first else None),
        ("takes the longer", audit.longer_wins),
        ("a judge of length alone would give the student", longer.mean if longer else None),
        ("unreadable", audit.unparsed),
        ("cut before the verdict (raise compare.judge.max_tokens)", audit.cut or None),
    )
    return ", ".join(f"{title} {percent(share)}" for title, share in facts if share is not None) or None


def _prompts(scores: Comparison) -> str:
    prompts = number(scores.prompts) or "some"
    if scores.leaks is None:
        return f"{prompts}; it is not known whether they were trained on"
    if leaks := scores.leaks.get("leaked"):
        return f"{prompts}, of which {number(leaks)} stand in the training rows; see the metrics without them"
    return f"{prompts}, never trained on"


def _correctness(scores: Comparison) -> str | None:
    """A warning where no measure judges correctness (Gudibande et al., 2023)."""
    right = [one for one in scores.metrics.values() if one.correctness and one.by]
    if scores.judge or scores.lm_eval or right or scores.metrics.get("instructions", Measured()).by:
        return f"by references, on {max(one.n or 0 for one in right[0].by.values())} prompts" if right else None
    likeness = f"how like the {scores.titles['teacher'].lower()} the answers sound"
    return f"not measured: no judge, no checked instructions; these numbers say {likeness}"


def _power(power: Mapping[str, Any]) -> str | None:
    prompts, usd = number(finite(power.get("prompts"))), finite(power.get("usd"))
    if prompts is None:
        return None
    return f"{prompts} {power.get('explanation')}" + (f"; about USD {money(usd)}" if usd is not None else "")


def _split(record: RunRecord) -> str | None:
    by_rule = record.counts("curate").get("by_rule")
    if by_rule is None:
        return None
    near = sum(rows for reason, rows in by_rule.items() if reason.rpartition("/")[2] == "held_out")
    if near == 0:
        return "no training row was a near-duplicate of a held-out prompt"
    return f"{number(near)} near-duplicates of held-out prompts removed from the training rows"


def _ceiling(scores: Comparison, metrics: Sequence[MetricRow]) -> str | None:
    """The similarity of the teacher's own second answer, which no student can be expected to exceed."""
    again = [metric for metric in metrics if "teacher_again" in metric.measure.by]
    if not again:
        is_askable = not scores.is_of_data and any("student" in metric.measure.by for metric in metrics)
        return "not known: the teacher's second answers are not there to compare with" if is_askable else None
    likeness = next((metric for metric in again if metric.name == "rouge_l"), again[0])
    mean = fixed(likeness.measure.by["teacher_again"].mean, likeness.decimals)
    return f"{scores.described('teacher_again') or 'the teacher asked a second time'}; {likeness.title} {mean}"


def facts(record: RunRecord, base: Row, scores: Comparison, recipe: str) -> list[tuple[str, str]]:
    """Facts to name, cite and repeat the run."""
    seed = re.search(r"^seed:\s*(\S+)", recipe, re.MULTILINE)
    facts = {
        "Run": record.name,
        "Started": record.created,
        "distill": record.version,
        **{f"Teacher: {key.replace('_', ' ')}": value for key, value in (record.teacher or {}).items()},
        **{f"Student: {key.replace('_', ' ')}": value for key, value in base.items()},
        **{f"Compared as {title.lower()}": scores.described(model) for model, title in scores.titles.items()},
        "Seed": seed[1] if seed else None,
        "Recipe SHA-256": record.recipe_sha256,
    }
    return [(term, text) for term, value in facts.items() if (text := as_text(value)) not in (None, "", "{}", "[]")]
