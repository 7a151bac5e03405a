"""The report stage: one HTML file that says in ten seconds how far the student came, and then shows everything.

The page opens from a disk with no network. Its Content-Security-Policy allows its own style and script, by hash, and
nothing else; every value passes `visible` and Jinja's escaping, because a teacher's text is not to be trusted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

from distill import funnel
from distill.errors import RunFolderError
from distill.prompts import load
from distill.rows import read_jsonl, write_atomically
from distill.run import STAGES, read_record
from distill.text import visible

MODELS = {"teacher": "Teacher", "student": "Student", "base": "Base", "teacher_again": "Teacher again"}
"""The columns of the answers, in order; the base is the student before training."""
TABLE_MODELS = ("base", "student", "teacher_again", "teacher")
BADGES = {"rouge_l": "ROUGE-L", "nll_per_byte": "NLL/byte", "repetition": "repetition"}
"""Metrics shown on each answer, where an answer has them."""
SECTIONS = {
    "scores.json": "headline and metrics",
    "answers.jsonl": "answers side by side",
    "student/train_log.jsonl": "loss curve",
    "dropped.jsonl": "dropped rows",
}
"""What the page lacks without each file."""
MAX_TEXT = 4_000
"""Characters shown of one text; 32 prompts with four such answers stay under a megabyte."""
MAX_CARDS = 400
OPEN_CARDS = 4
MAX_DROPPED = 10
MAX_POINTS = 400
"""Points drawn of a loss curve; of a longer one every k-th, and the last."""

Row: TypeAlias = Mapping[str, Any]
"""A JSON object as another stage left it."""


def report(folder: Path, *, title: str | None = None) -> dict[str, int]:
    """Write `folder`/report.html from the run's files; what has not run is left out, and the page says so.

    The same files give the same bytes. Returns counts: `bytes` of the page, `prompts` and `dropped` rows shown,
    `left_out` sections. Raises `RunFolderError` when `folder` is no run, a file is damaged or nothing can be written.
    """
    page = shape(folder, title=title)
    html = render(page)
    write_atomically(folder / "report.html", [html])
    counts = {key: len(page[key]) for key in ("cards", "dropped", "left_out")}
    return {"bytes": len(html.encode()), "prompts": counts.pop("cards"), **counts}


def shape(folder: Path, *, title: str | None = None) -> dict[str, Any]:
    """All that the template shows, worked out of the run's files."""
    record = read_record(folder)
    stages = {name: record["stages"][name] for name in _ordered(record.get("stages") or {})}
    scores, answers = _object(folder / "scores.json"), _rows(folder / "answers.jsonl")
    metrics = [_metric(name, entry) for name, entry in (scores.get("metrics") or {}).items()]
    table = [_stage(name, stage) for name, stage in stages.items()]
    dropped, dropped_total = _spread(_stream(folder / "dropped.jsonl"))
    recipe = _recipe(folder / "recipe.yaml")
    return {
        "title": title or f"{record.get('name', folder.name)} – distill report",
        "headline": scores.get("headline") or _headline(stages),
        "warnings": [_warning(name, stage) for name, stage in stages.items() if stage.get("status") != "done"],
        "left_out": [f"{what} (no {file})" for file, what in SECTIONS.items() if not (folder / file).is_file()],
        "gap": _gap(metrics),
        "trust": _trust(scores, stages, metrics) if scores else [],
        "metrics": metrics,
        "notes": scores.get("notes") or [],
        "funnel": list(_placed(_funnel(stages))),
        "rules": funnel.read(folder, _counts(stages, "curate")),
        "stages": [*table, _total(table)] if table else [],
        "curve": _curve(_rows(folder / "student" / "train_log.jsonl")),
        "cards": [_card(place, row) for place, row in enumerate(answers[:MAX_CARDS], start=1)],
        "prompts": len(answers),
        "dropped": [_dropped(row) for row in dropped],
        "dropped_total": dropped_total,
        "facts": _facts(record, _object(folder / "student" / "base.json"), scores, recipe),
        "versions": record.get("versions") or {},
        "files": [(name, *output) for name, stage in stages.items() for output in (stage.get("outputs") or {}).items()],
        "recipe": recipe,
    }


def render(page: Row) -> str:
    """The page as HTML: every value escaped, style and script allowed by their hashes alone."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(lambda name: load(f"report/{name}")),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else _plain(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "fixed": fixed, "percent": percent, "size": size}
    style, script = load("report/page.css"), load("report/page.js")
    return environment.get_template("page.html.jinja").render(
        page=page, models=MODELS, table_models=TABLE_MODELS, open_cards=OPEN_CARDS,
        style=Markup(style), script=Markup(script),
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _plain(value: Any) -> Any:
    return "–" if value is None else visible(value) if isinstance(value, str) else value


def number(value: float | None) -> str | None:
    """A count with its thousands set apart; None stays None, which the page shows as a dash."""
    return None if value is None else f"{value:,.0f}"


def fixed(value: float | None, decimals: int, signed: bool = False) -> str | None:
    """A value with so many decimals and a true minus sign."""
    return None if value is None else f"{value:{'+' if signed else ''},.{decimals}f}".replace("-", "−")


def percent(share: float | None) -> str | None:
    """A share as whole percent."""
    return None if share is None else f"{fixed(100 * share, 0)}%"


def duration(seconds: float | None) -> str | None:
    """Seconds as a reader says them: 4.2 s, 3 min 20 s, 1 h 05 min."""
    if seconds is None or seconds < 59.5:
        return None if seconds is None else f"{seconds:.{int(seconds < 9.95)}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str | None:
    """Bytes in GB or MB (powers of ten)."""
    return None if count is None else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# --- reading


def _stream(path: Path) -> Iterator[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else iter(())


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(_stream(path))


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); delete it and run its stage again") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: found {type(value).__name__}, expected a JSON object; run its stage again")
    return value


def _recipe(path: Path) -> str:
    """The resolved recipe as text, whatever it holds; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _finite(value: Any) -> float | None:
    """A number that can be drawn; JSON's NaN and Infinity are none."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


# --- what the comparison found


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its interval, where there is one."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> list[float]:
        """The mean and the ends that there are."""
        return [end for end in (self.mean, self.low, self.high) if end is not None]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to percent of a drawing's width (or height, where `flip` puts the greatest value first)."""

    low: float
    high: float
    flip: bool = False

    def at(self, value: float) -> float:
        """Percent, 0 to 100; the middle where the scale has no length."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(100 * (1 - share if self.flip else share), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the metrics table."""

    name: str
    title: str
    unit: str
    better: str
    """`lower`, `higher` or `near 1`; empty where it is not known."""
    explanation: str
    note: str | None
    by: dict[str, Interval]
    difference: Interval | None
    """Student minus base."""
    judgement: str | None
    """`better` or `worse` where the interval of the difference excludes zero, `unclear` where not, None without one."""
    gap: Interval | None
    """Share of the way from base to teacher; 1 is all of it."""
    decimals: int
    """Three figures of the greatest mean, and no more than three decimals."""


def _interval(entry: Row | None, key: str = "mean") -> Interval | None:
    mean = _finite((entry or {}).get(key))
    return Interval(mean, _finite(entry.get("low")), _finite(entry.get("high"))) if entry and mean is not None else None


def _metric(name: str, entry: Row) -> Metric:
    by = {model: value for model in MODELS if (value := _interval((entry.get("by") or {}).get(model)))}
    greatest = max((abs(value.mean) for value in by.values()), default=0)
    return Metric(
        name=name,
        title=entry.get("title") or name,
        unit=entry.get("unit") or "",
        better=entry.get("better") or "",
        explanation=entry.get("explanation") or "",
        note=entry.get("note"),
        by=by,
        difference=_interval(entry.get("student_minus_base")),
        judgement=_judgement(entry.get("better"), by, entry.get("student_minus_base")),
        gap=_interval(entry.get("gap_closed"), "share"),
        decimals=0 if greatest >= 1000 else 1 if greatest >= 100 else 2 if greatest >= 1 else 3,
    )


def _judgement(better: str | None, by: Mapping[str, Interval], difference: Row | None) -> str | None:
    if not difference or _interval(difference) is None:
        return None
    gain = {"higher": difference["mean"], "lower": -difference["mean"]}.get(better or "", 0)
    if better == "near 1" and {"base", "student"} <= by.keys():
        gain = abs(by["base"].mean - 1) - abs(by["student"].mean - 1)
    if gain == 0 or not difference.get("excludes_zero"):
        return "unclear"
    return "better" if gain > 0 else "worse"


def _gap(metrics: Sequence[Metric]) -> dict[str, Any] | None:
    """The drawing under the headline: the first metric of which a share of the gap is known, else the first at all."""
    drawable = [metric for metric in metrics if {"base", "student"} <= metric.by.keys()]
    if not drawable:
        return None
    metric = next((metric for metric in drawable if metric.gap), drawable[0])
    ends = [end for value in metric.by.values() for end in value.known]
    margin = (max(ends) - min(ends)) * 0.04
    scale = Scale(min(ends) - margin, max(ends) + margin, flip=metric.better == "lower")
    return {"metric": metric, "scale": scale}


def _trust(scores: Row, stages: Row, metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    """What a reader needs in order to believe the headline; only what the run's files say."""
    shares = {title: _finite((scores.get("cut_share") or {}).get(model)) for model, title in MODELS.items()}
    cut = ", ".join(f"{title.lower()} {percent(share)}" for title, share in shares.items() if share is not None)
    facts = {
        "Held-out prompts": f"{number(scores.get('prompts')) or 'some'}, never trained on",
        "Split": _split(stages),
        "Answers cut": cut,
        "Ceiling": _ceiling(scores, metrics),
        "Intervals": scores.get("method"),
    }
    return [(term, fact) for term, fact in facts.items() if fact]


def _split(stages: Row) -> str | None:
    by_rule = _counts(stages, "curate").get("by_rule")
    if by_rule is None:
        return None
    near = sum(rows for reason, rows in by_rule.items() if reason.rpartition("/")[2] == "held_out")
    if near == 0:
        return "no training row was a near-duplicate of a held-out prompt"
    return f"{number(near)} near-duplicates of held-out prompts removed from the training rows"


def _ceiling(scores: Row, metrics: Sequence[Metric]) -> str | None:
    """The teacher's own second answer: no student can be expected to be more like the first one."""
    again = [metric for metric in metrics if "teacher_again" in metric.by]
    if not again:
        return None
    likeness = next((metric for metric in again if metric.name == "rouge_l"), again[0])
    described = _described(scores, "teacher_again") or "the teacher asked a second time"
    return f"{described}; {likeness.title} {fixed(likeness.by['teacher_again'].mean, likeness.decimals)}"


def _described(scores: Row, model: str) -> str | None:
    entry = (scores.get("models") or {}).get(model) or {}
    return entry.get("description") or entry.get("model")


# --- what the stages did


def _counts(stages: Row, name: str) -> dict[str, Any]:
    return dict((stages.get(name) or {}).get("counts") or {})


def _ordered(stages: Row) -> list[str]:
    """The stages in order, those of other names first; the report's own entry is of an earlier report."""
    return sorted(set(stages) - {"report"}, key=lambda name: (STAGES.index(name) if name in STAGES else -1, name))


def _headline(stages: Row) -> str:
    if "train" in stages:
        return "The student has not been compared with its teacher yet."
    if sessions := _counts(stages, "collect").get("sessions"):
        return f"{number(sessions)} answers collected; no student has been trained on them yet."
    return "Nothing has been collected yet."


def _warning(name: str, stage: Row) -> str:
    return ": ".join(filter(None, [f"{name} is {stage.get('status', 'unknown')}", stage.get("detail")]))


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the funnel."""

    label: str
    rows: int
    kind: str
    """`asked` (the way there), `kept`, or taken out of what was kept before: `lost`, `test`."""
    start: float = 0.0
    """Percent of the longest bar, as is `length`."""
    length: float = 0.0


def _funnel(stages: Row) -> list[Bar]:
    expand, collect, curate = (_counts(stages, name) for name in ("expand", "collect", "curate"))
    bars = [
        Bar("seed tasks", expand.get("seeds") or 0, "asked"),
        Bar("requests for new tasks", expand.get("requests") or 0, "asked"),
        Bar("candidate tasks", expand.get("candidates") or 0, "kept"),
        *_lost("rejected", expand.get("rejected")),
        Bar("tasks", expand.get("tasks") or collect.get("tasks") or 0, "kept"),
        Bar("failed: no answer", collect.get("failed") or 0, "lost"),
        Bar("answered sessions", collect.get("sessions") or curate.get("rows") or 0, "kept"),
        *_lost("dropped", curate.get("by_rule")),
        Bar("held out for the comparison", curate.get("test") or 0, "test"),
        Bar("kept for training", curate.get("kept") or 0, "kept"),
        Bar("trained on", _counts(stages, "train").get("rows") or 0, "kept"),
    ]
    return [bar for bar in bars if bar.rows]


def _lost(verb: str, reasons: Mapping[str, int] | None) -> list[Bar]:
    """The most frequent reason first."""
    ranked = sorted((reasons or {}).items(), key=lambda item: (-item[1], item[0]))
    return [Bar(f"{verb}: {_reason(reason)}", rows, "lost") for reason, rows in ranked]


def _reason(code: str) -> str:
    """`length/too_short` as a reader says it: too short (length)."""
    rule, _, reason = code.replace("_", " ").rpartition("/")
    return f"{reason} ({rule})" if rule not in ("", reason) else reason


def _placed(bars: Sequence[Bar]) -> Iterator[Bar]:
    """The bars with their places: what is taken out lies under the end of what it is taken from."""
    longest = max((bar.rows for bar in bars), default=0)
    left = 0
    for bar in bars:
        taken = bar.kind in ("lost", "test")
        left = max(0, left - bar.rows) if taken else bar.rows
        start = left if taken else 0
        yield replace(bar, start=round(100 * start / longest, 2), length=round(100 * bar.rows / longest, 2))


_SUMMED = ("seconds", "asked", "replayed", "failed", "prompt", "completion", "usd")


def _stage(name: str, stage: Row) -> dict[str, Any]:
    figures = {**stage, **(stage.get("requests") or {}), **(stage.get("tokens") or {})}
    numbers = {key: _finite(figures.get(key)) for key in (*_SUMMED, "peak_memory_bytes")}
    return {"name": name, "status": stage.get("status", "unknown"), **numbers}


def _total(table: Sequence[Row]) -> dict[str, Any]:
    """Sums over the stages that have the figure; the peak is the highest of them."""
    known = {key: [row[key] for row in table if row[key] is not None] for key in (*_SUMMED, "peak_memory_bytes")}
    sums = {key: sum(known[key]) if known[key] else None for key in _SUMMED}
    return {"name": "total", "status": "", **sums, "peak_memory_bytes": max(known["peak_memory_bytes"], default=None)}


_LOGGED = ("step", "steps", "loss", "eval_loss", "learning_rate", "tokens", "seconds")


def _curve(log: Sequence[Row]) -> dict[str, Any] | None:
    """The loss in nats a token over the steps; steps whose loss is no number cannot be drawn and are counted."""
    steps: list[dict[str, Any]] = [{key: row.get(key) for key in _LOGGED} for row in log if "step" in row]
    points = [row for row in steps if _finite(row["loss"]) is not None]
    evaluations = [row for row in steps if _finite(row["eval_loss"]) is not None]
    if not points:
        return None
    every = math.ceil(len(points) / MAX_POINTS)
    losses = [row["loss"] for row in points] + [row["eval_loss"] for row in evaluations]
    x_ticks = ticks(0, max(row["step"] for row in points + evaluations), least=1)
    y_ticks = ticks(min(losses), max(losses))
    return {
        "points": points[::every] + ([points[-1]] if (len(points) - 1) % every else []),
        "every": every,
        "evaluations": evaluations,
        "unfinite": sum(row["loss"] is not None for row in steps) - len(points),
        "x": Scale(x_ticks[0], x_ticks[-1]),
        "y": Scale(y_ticks[0], y_ticks[-1], flip=True),
        "x_ticks": x_ticks,
        "y_ticks": y_ticks,
    }


def ticks(low: float, high: float, *, least: float = 1e-6) -> list[float]:
    """Round values, `least` or more apart (1, 2 or 5 times a power of ten), that enclose low and high; about five."""
    rough = max((high - low) / 5, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


# --- answers and rows


def _text(value: Any) -> dict[str, Any]:
    text = value if isinstance(value, str) else _shown(value) or ""
    return {"shown": text[:MAX_TEXT], "rest": max(0, len(text) - MAX_TEXT)}


def _conversation(row: Row) -> dict[str, Any]:
    """The turns, and the start of the last question on one line."""
    messages = row.get("messages") or []
    asked = [turn.get("content") for turn in messages if turn.get("role") == "user"]
    turns = [{"role": turn.get("role"), "text": _text(turn.get("content"))} for turn in messages]
    return {"turns": turns, "opening": " ".join(str(asked[-1]).split())[:200] if asked else ""}


def _card(place: int, row: Row) -> dict[str, Any]:
    """One held-out prompt with the answers to it, and the student's ROUGE-L for sorting."""
    answers, scores = row.get("answers") or {}, row.get("scores") or {}
    shown = [_answer(model, answers.get(model), scores.get(model) or {}) for model in MODELS]
    rouge_l = _finite((scores.get("student") or {}).get("rouge_l"))
    return {"place": place, **_conversation(row), "answers": shown, "rouge_l": rouge_l}


def _answer(model: str, answer: Row | None, scores: Row) -> dict[str, Any]:
    text = _text(answer.get("text")) if answer else None
    badges = [_ending(answer)] if answer else []
    for name, title in BADGES.items():
        if (value := _finite(scores.get(name))) is not None:
            badges.append({"text": f"{title} {fixed(value, 2)}", "hint": name, "alert": False})
    return {"model": model, "text": text, "badges": badges}


def _ending(answer: Row) -> dict[str, Any]:
    finish, tokens = answer.get("finish") or "unknown", number(_finite(answer.get("tokens"))) or "?"
    text = {"stop": "stopped", "length": "cut"}.get(finish, finish)
    return {"text": text, "hint": f"{text} after {tokens} tokens", "alert": finish != "stop"}


def _failing(row: Row) -> list[Row]:
    return [verdict for verdict in row.get("verdicts") or [] if not verdict.get("keep")]


def _spread(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """At most `MAX_DROPPED` rows, of each reason in turn, and how many there are."""
    groups: dict[Any, list[Row]] = {}
    total = 0
    for row in rows:
        total += 1
        reason = next(((verdict.get("rule"), verdict.get("reason")) for verdict in _failing(row)), None)
        group = groups.setdefault(reason, [])
        if len(group) < MAX_DROPPED:
            group.append(row)
    turns = zip_longest(*groups.values())
    return [row for turn in turns for row in turn if row is not None][:MAX_DROPPED], total


def _dropped(row: Row) -> dict[str, Any]:
    keys = ("rule", "reason", "value", "threshold", "neighbour")
    return {
        **_conversation(row),
        "verdicts": [{key: _figure(verdict.get(key)) for key in keys} for verdict in _failing(row)],
    }


def _figure(value: Any) -> str | None:
    """What stands in a verdict, where nothing may be an empty text and a number a text."""
    return None if value in (None, "") else funnel.short(value)


# --- where it comes from


def _facts(record: Row, base: Row, scores: Row, recipe: str) -> list[tuple[str, str]]:
    """What a reader needs in order to name, cite and repeat the run."""
    seed = re.search(r"^seed:\s*(\S+)", recipe, re.MULTILINE)
    facts = {
        "Run": record.get("name"),
        "Started": record.get("created"),
        "distill": record.get("version"),
        **{f"Teacher: {key.replace('_', ' ')}": value for key, value in (record.get("teacher") or {}).items()},
        **{f"Student: {key.replace('_', ' ')}": value for key, value in base.items()},
        **{f"Compared as {title.lower()}": _described(scores, model) for model, title in MODELS.items()},
        "Seed": seed[1] if seed else None,
        "Recipe SHA-256": record.get("recipe_sha256"),
    }
    return [(term, text) for term, value in facts.items() if (text := _shown(value)) not in (None, "", "{}", "[]")]


def _shown(value: Any) -> str | None:
    """A value on one line, with three figures of a fraction."""
    if value is None or isinstance(value, str):
        return value
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
