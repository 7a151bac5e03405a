"""Prints a run: status, costs, the curation funnel and the worst answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from distill.core.console import Paint, money
from distill.core.jsonl import read_jsonl
from distill.pipeline.staleness import revision_remarks
from distill.report.answer_rows import titles_of, why, worst_first
from distill.run.funnel import Funnel, read
from distill.run.layout import STAGES
from distill.run.record import RunRecord, StageRecord, read_record, run_record
from distill.run.remarks import comparison_remark, headline, is_compared, stale, student_remark
from distill.run.scores import Measured, require_scores
from distill.text.tokens import visible


def status_lines(folder: Path) -> list[str]:
    """The lines that `show` prints: one per stage, then costs and the headline."""
    document, record = read_record(folder), run_record(folder)
    changes = stale(folder, document)
    names = [name for name in STAGES if name in record.stages]
    return [
        f"{record.name} in {folder}",
        *filter(None, [student_remark(folder)]),
        *(_stage_line(name, record.stages[name], changes.get(name)) for name in names),
        *revision_remarks(folder, record),
        *cost_lines(record),
        *headline(folder),
        *(benchmark_lines(folder) if is_compared(folder, document) else []),
    ]


def benchmark_lines(folder: Path) -> list[str]:
    """Results of base and student on the lm-evaluation-harness, one line per measure."""
    tasks = require_scores(folder).lm_eval
    if tasks is None:
        return []
    notes = [f"lm-eval  {visible(note)}" for note in tasks.notes]
    return [_benchmark_line(measure) for measure in tasks.entries.values()] + notes


def _benchmark_line(measure: Measured) -> str:
    by, difference, p = measure.by, measure.student_minus_base, measure.p_holm
    if difference is None or difference.low is None or difference.high is None:
        return f"lm-eval  {measure.title}: no document has numbers of both"
    test = "too few documents to test" if p is None else f"adjusted p {p:.3f}" if p >= 0.001 else "adjusted p < 0.001"
    return (
        f"lm-eval  {visible(measure.title)}: student {by['student'].mean:.3f}, base {by['base'].mean:.3f}, "
        f"difference {difference.mean:+.3f} (95% CI {difference.low:+.3f} to {difference.high:+.3f}), {test}"
    )


def _stage_line(name: str, stage: StageRecord, change: str | None) -> str:
    """`change`: what has changed since a finished stage."""
    pieces = [f"{name:8} {'stale' if change else stage.status:8} {stage.seconds:7.1f} s"]
    pieces += [f"{key.replace('_', ' ')} {value:,}" for key, value in stage.counts.items() if isinstance(value, int)]
    if stage.requests:
        pieces.append(f"{stage.requests.get('asked', 0)} asked, {stage.requests.get('replayed', 0)} replayed")
    prompt, answer = (sum(cost[f"{kind}_tokens"] for cost in stage.costs) for kind in ("prompt", "completion"))
    if prompt or answer:
        pieces.append(f"{prompt:,} + {answer:,} tokens in all")
    if stage.usd is not None:
        pieces.append(money(stage.usd))
    pieces += filter(None, [change or stage.detail])
    return "  ".join(pieces)


def cost_lines(record: RunRecord) -> list[str]:
    """Sends, tokens and USD by stage, teacher and outcome."""
    rows = [(name, cost) for name in STAGES if name in record.stages for cost in record.stages[name].costs]
    if all(cost["outcome"] == "kept" and cost["usd"] is None for _, cost in rows):
        return []
    width = max((len(cost["teacher"]) for _, cost in rows), default=0)
    return ["costs:"] + [
        f"  {name:8} {cost['teacher']:{width}}  {cost['outcome']:9} {cost['sends']:7,} sends"
        f" {cost['prompt_tokens']:10,} + {cost['completion_tokens']:,} tokens"
        + (f"  {money(cost['usd'])}" if cost["usd"] is not None else "")
        for name, cost in rows
    ]


# --- for the terminal


def funnel_lines(folder: Path) -> list[str]:
    """The lines that `show --funnel` prints, with control characters of the rows made visible."""
    funnel = read(folder)
    if funnel is None:
        return ["curate has not run yet, so there is no funnel"]
    texts = [
        f"curate: {funnel.rows:,} sessions, {funnel.kept:,} kept, {funnel.test:,} held out, {funnel.dropped:,} dropped"
    ]
    texts += _loss_lines(funnel)
    texts += _overlap_lines(funnel.overlaps)
    for title, counts in (("labels", funnel.labels), ("mended", funnel.mended)):
        if counts:
            texts.append(f"{title}: {', '.join(f'{name} {rows:,}' for name, rows in counts.items())}")
    return [visible(line).replace("\n", " ") for line in texts]


def _loss_lines(funnel: Funnel) -> Iterator[str]:
    if not funnel.losses:
        return
    codes = [f"{loss.rule}: {loss.reason}" for loss in funnel.losses]
    width = max(len("dropped because"), *map(len, codes))
    yield f"  {'dropped because':{width}}  first against  would also drop"
    for code, loss in zip(codes, funnel.losses, strict=True):
        yield f"  {code:{width}}  {loss.first:13,}  {loss.also:15,}"
        for example in loss.examples:
            why = f" ({example.why})" if example.why else ""
            yield f"      {example.id}: {example.question} → {example.answer or '(nothing)'}{why}"


def _overlap_lines(overlaps: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if not overlaps:
        return
    width = max(map(len, overlaps))
    columns = [max(6, len(rule)) for rule in overlaps]
    yield "rows that two rules would both drop (on the diagonal: all that one would drop)"
    yield "  " + "  ".join([" " * width, *(f"{rule:>{size}}" for rule, size in zip(overlaps, columns, strict=True))])
    for rule, row in overlaps.items():
        cells = (f"{rows:{size},}" for rows, size in zip(row.values(), columns, strict=True))
        yield "  " + "  ".join([f"{rule:{width}}", *cells])


MAX_TEXT = 3_000
"""Characters shown of one text."""
_PIECES = re.compile(r"\S+\s*|\s+")


def worst_lines(run: Path, count: int, paint: Paint) -> Iterator[str]:
    """The `count` worst prompts of a comparison. Raises `RunFolderError` where there is none.

    `paint(text, what)` marks text that only the student (`added`) or only the teacher (`removed`) has, and headings.
    """
    scores = require_scores(run)
    titles = titles_of(scores)
    rows = worst_first(list(read_jsonl(run / "answers.jsonl")))
    yield from filter(None, [comparison_remark(run)])
    for place, row in enumerate(rows[:count], start=1):
        yield paint(
            f"{place} of {len(rows)} · {visible(str(row.get('id')))} · {why(row, titles) or 'no outcome'}", "head"
        )
        yield from _pair(row, scores.titles["teacher"].lower(), paint)
        yield ""


def _pair(row: Mapping[str, Any], reference: str, paint: Paint) -> Iterator[str]:
    for turn in row.get("messages") or []:
        yield f"{paint(str(turn.get('role')), 'who')}: {_short(turn.get('content'))}"
    for turn in row.get("turns") or []:
        yield f"{paint('then', 'who')}: {_short(turn)}"
    texts = {model: _answer_text(row, model) for model in ("base", "student", "teacher")}
    yield f"{paint('base', 'who')}: {texts['base']}"
    student, teacher = mark_differences(texts["student"], texts["teacher"], paint)
    yield f"{paint('student', 'who')}: {student}"
    yield f"{paint(reference, 'who')}: {teacher}"
    for game in ((row.get("judge") or {}).get("pairs") or {}).get("student:teacher", {}).get("games", ()):
        yield f"{paint('judge', 'who')} ({game['first']} first): {game['verdict']}. {_short(game.get('reason'))}"
    for near in (row.get("coverage") or {}).get("nearest", ())[:1]:
        yield f"{paint('nearest in training', 'who')} ({near['similarity']:.2f}): {_short(near.get('prompt'))}"


def _answer_text(row: Mapping[str, Any], model: str) -> str:
    answer = (row.get("answers") or {}).get(model)
    return "(no answer)" if answer is None else _short(answer.get("text")) or "(an empty answer)"


def _short(value: Any) -> str:
    text = visible(value) if isinstance(value, str) else ""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def mark_differences(student: str, teacher: str, paint: Paint) -> tuple[str, str]:
    """Both texts, with the words marked that the other does not have in that place."""
    ours, theirs = _PIECES.findall(student), _PIECES.findall(teacher)
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    student_marked, teacher_marked = [], []
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        mine, other = "".join(ours[start:end]), "".join(theirs[other_start:other_end])
        student_marked.append(mine if kind == "equal" else _marked(mine, "added", paint))
        teacher_marked.append(other if kind == "equal" else _marked(other, "removed", paint))
    return "".join(student_marked), "".join(teacher_marked)


def _marked(text: str, what: str, paint: Paint) -> str:
    """The text with everything but its outer white space marked."""
    inner = text.strip()
    if not inner:
        return text
    start = text.index(inner)
    return f"{text[:start]}{paint(inner, what)}{text[start + len(inner) :]}"
