"""Rows lost per curation rule, alone and combined, with examples; for `show` and the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from distill.core.jsonl import read_jsonl
from distill.errors import one_line
from distill.run.record import run_record
from distill.types import Verdict

EXAMPLES = 2
"""Rows named for each reason."""
SHOWN = 60
"""Characters shown of an example's question and of its answer."""


def tally(rows: Sequence[tuple[str, Sequence[Verdict]]]) -> dict[str, Any]:
    """Counts for the funnel. `rows` are ids, each with its verdicts in the order of the rules.

    `by_rule` and `against` count rows by `rule/reason`: those that it was the first to drop, and all that it would
    drop. `measured` counts the rows that each rule saw; `overlaps` the rows that two rules would both drop (in the
    order of the rules, without empty pairs). `examples` are ids of rows by the first `rule/reason` to drop them. A rule
    sees rows that another has dropped unless it works on sets, or skips dropped rows.
    """
    first: Counter[str] = Counter()
    against: Counter[str] = Counter()
    rows_by_rule: Counter[str] = Counter()
    overlaps: dict[str, Counter[str]] = {}
    examples: dict[str, list[str]] = {}
    for id, verdicts in rows:
        rows_by_rule.update(list(dict.fromkeys(verdict.rule for verdict in verdicts)))
        codes = list(dict.fromkeys(_code(verdict) for verdict in verdicts if not verdict.keep))
        if not codes:
            continue
        first[codes[0]] += 1
        against.update(codes)
        if len(ids := examples.setdefault(codes[0], [])) < EXAMPLES:
            ids.append(id)
        for one, other in combinations(dict.fromkeys(code.rpartition("/")[0] for code in codes), 2):
            overlaps.setdefault(one, Counter())[other] += 1
    return {
        "by_rule": dict(first.most_common()),
        "against": dict(against.most_common()),
        "measured": dict(rows_by_rule),
        "overlaps": {one: dict(others) for one, others in overlaps.items()},
        "examples": examples,
    }


def _code(verdict: Verdict) -> str:
    return f"{verdict.rule}/{verdict.reason}"


@dataclass(frozen=True, slots=True)
class FunnelExample:
    """A dropped row, shortened."""

    id: str
    question: str
    answer: str
    why: str
    """Value and threshold of the verdict."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Rows dropped by one rule for one reason."""

    rule: str
    reason: str
    first: int
    """Rows that it was the first to drop."""
    also: int
    """Rows that it would have dropped too."""
    examples: Sequence[FunnelExample] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Funnel:
    """Effect of each curation rule on a run's rows."""

    rows: int
    kept: int
    test: int
    dropped: int
    losses: Sequence[Loss]
    """Largest first."""
    overlaps: Mapping[str, Mapping[str, int]]
    """Symmetric matrix by rule: rows that both rules would drop; on the diagonal, all that one would drop."""
    labels: Mapping[str, int]
    mended: Mapping[str, int]
    """Rows that a rule changed, by rule."""


def read(folder: Path, counts: Mapping[str, Any] | None = None) -> Funnel | None:
    """The funnel of a run from curate's counts, with texts of examples from dropped.jsonl; `None` without counts.

    `counts` are read from run.json when left out. Missing counts, as in a run of an earlier version, are empty.
    """
    if counts is None:
        counts = run_record(folder).counts("curate")
    if "rows" not in counts:
        return None
    first, against = counts.get("by_rule") or {}, counts.get("against") or {}
    texts = _texts(folder / "dropped.jsonl", counts.get("examples") or {})
    codes = sorted(first | against, key=lambda code: (-first.get(code, 0), -against.get(code, 0), code))
    losses = []
    for code in codes:
        rule, _, reason = code.rpartition("/")
        also = max(0, against.get(code, 0) - first.get(code, 0))
        losses.append(Loss(rule, reason, first.get(code, 0), also, texts.get(code, ())))
    return Funnel(
        rows=counts["rows"],
        kept=counts.get("kept", 0),
        test=counts.get("test", 0),
        dropped=counts.get("dropped", 0),
        losses=losses,
        overlaps=_matrix(losses, counts.get("overlaps") or {}),
        labels=counts.get("labels") or {},
        mended=counts.get("mended") or {},
    )


def _matrix(losses: Sequence[Loss], overlaps: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The field `overlaps` of `Funnel`; empty unless two rules would drop the same row."""
    pairs = {(one, other): rows for one, others in overlaps.items() for other, rows in others.items()}
    rules = list(dict.fromkeys(loss.rule for loss in losses if any(loss.rule in pair for pair in pairs)))
    matrix = {one: {other: pairs.get((one, other), 0) + pairs.get((other, one), 0) for other in rules} for one in rules}
    for rule in rules:
        matrix[rule][rule] = sum(loss.first + loss.also for loss in losses if loss.rule == rule)
    return matrix


def _texts(path: Path, ids_by_code: Mapping[str, Sequence[str]]) -> dict[str, list[FunnelExample]]:
    """The rows of dropped.jsonl with these ids, in file order, by code."""
    examples: dict[str, list[FunnelExample]] = {code: [] for code in ids_by_code}
    codes = {str(id): code for code, ids in ids_by_code.items() for id in ids}
    for row in read_jsonl(path) if codes and path.is_file() else ():
        code = codes.get(str(row.get("id")))
        if code is not None and len(examples[code]) < EXAMPLES:
            examples[code].append(_example(row, code))
    return examples


def _example(row: Mapping[str, Any], code: str) -> FunnelExample:
    messages = row.get("messages") or []
    by_role = {turn.get("role"): str(turn.get("content")) for turn in reversed(messages)}
    verdicts = [verdict for verdict in row.get("verdicts") or [] if not verdict.get("keep")]
    against: Mapping[str, Any] = next((one for one in verdicts if f"{one.get('rule')}/{one.get('reason')}" == code), {})
    return FunnelExample(
        str(row.get("id")), _opening(by_role.get("user", "")), _opening(by_role.get("assistant", "")), _why(against)
    )


def _opening(text: str) -> str:
    return one_line(text[: 10 * SHOWN], SHOWN)


def _why(verdict: Mapping[str, Any]) -> str:
    """Such as `measured 0.814, limit 0.7, beside t0031`."""
    fields = (("measured", "value"), ("limit", "threshold"), ("beside", "neighbour"))
    pieces = [f"{word} {short(verdict[key])}" for word, key in fields if verdict.get(key) not in (None, "")]
    return ", ".join(pieces + ([_opening(str(verdict["note"]))] if verdict.get("note") else []))


def short(value: Any) -> str:
    """A verdict's value for a reader: a fraction with three significant digits, text as it is."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        return str(value)
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e15 else f"{number:.3g}"
