"""The report stage: one HTML file that says in ten seconds how far the student came, and then shows everything.

The page opens from a disk with no network. A strict Content-Security-Policy allows its own style and script, by hash,
and nothing else; every value passes `visible` and Jinja's escaping, because a teacher's text is not to be trusted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import Any

from distill.errors import RunFolderError
from distill.prompts import load
from distill.rows import read_jsonl, write_atomically
from distill.run import STAGES, read_record

MODELS = {"teacher": "Teacher", "student": "Student", "base": "Base", "teacher_again": "Teacher again"}
"""The columns of the answers, in order; the base is the student before training."""
TABLE_MODELS = ("base", "student", "teacher_again", "teacher")
BADGES = {"rouge_l": "ROUGE-L", "nll_per_byte": "NLL/byte", "repetition": "repetition"}
"""Metrics shown on each answer, where an answer has them."""
MAX_TEXT = 4_000
"""Characters shown of one text; 32 prompts with four such answers stay under a megabyte."""
MAX_CARDS = 400
OPEN_CARDS = 4
MAX_DROPPED = 10
MAX_POINTS = 400
"""Points drawn of a loss curve; of a longer one every k-th, and the last."""


def report(folder: Path, *, title: str | None = None) -> dict[str, int]:
    """Write `folder`/report.html from the run's files; what has not run is left out, and the page says so.

    The same files give the same bytes. Returns counts: `bytes` of the page, `prompts` shown side by side, `dropped`
    rows shown, `left_out` sections. Raises `RunFolderError` when `folder` is no run or a file in it is damaged.
    """
    page = shape(folder, title)
    html = render(page)
    write_atomically(folder / "report.html", [html])
    return {
        "bytes": len(html.encode()),
        "prompts": len(page.cards),
        "dropped": len(page.dropped),
        "left_out": len(page.left_out),
    }


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its interval, where there is one."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the greatest value that a drawing must hold."""
        ends = [end for end in (self.mean, self.low, self.high) if end is not None]
        return min(ends), max(ends)


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


@dataclass(frozen=True, slots=True)
class Gap:
    """The bar under the headline: where base, student and teacher stand on one metric, better to the right."""

    metric: Metric
    scale: Scale


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


@dataclass(frozen=True, slots=True)
class Curve:
    """The loss over the steps of the training."""

    points: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    x: Scale
    y: Scale
    x_ticks: list[float]
    y_ticks: list[float]
    every: int
    """Each how many-th logged step is drawn."""
    unfinite: int
    """Logged steps whose loss is no number; they cannot be drawn."""


@dataclass(frozen=True, slots=True)
class Badge:
    """One small fact on an answer."""

    text: str
    hint: str
    alert: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A text as shown, and how many of its characters are left out."""

    shown: str
    rest: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer on a card."""

    model: str
    title: str
    text: Text | None
    badges: list[Badge]


@dataclass(frozen=True, slots=True)
class Card:
    """One held-out prompt with the answers to it."""

    number: int
    turns: list[tuple[str, Text]]
    opening: str
    answers: list[Answer]
    rouge_l: float | None
    """The student's, for sorting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the template shows."""

    title: str
    headline: str
    warnings: list[str]
    left_out: list[str]
    gap: Gap | None
    trust: list[tuple[str, str]]
    metrics: list[Metric]
    notes: list[str]
    funnel: list[Bar]
    stages: list[dict[str, Any]]
    total: dict[str, Any]
    curve: Curve | None
    cards: list[Card]
    prompts: int
    dropped: list[dict[str, Any]]
    dropped_total: int
    facts: list[tuple[str, str]]
    versions: dict[str, Any]
    files: list[tuple[str, str, str]]
    recipe: str | None


def shape(folder: Path, title: str | None = None) -> Page:
    """Read the run folder and work out everything that the page shows."""
    record = read_record(folder)
    scores = _object(folder / "scores.json")
    stages = {name: stage for name, stage in record.get("stages", {}).items() if name != "report"}
    metrics = [_metric(name, entry) for name, entry in scores.get("metrics", {}).items()]
    answers = _rows(folder / "answers.jsonl")
    dropped, dropped_total = _spread(read_jsonl(folder / "dropped.jsonl") if _has(folder, "dropped.jsonl") else [])
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace") if _has(folder, "recipe.yaml") else None
    return Page(
        title=title or f"{record.get('name', folder.name)} – distill report",
        headline=scores.get("headline") or _headline(stages),
        warnings=_warnings(stages),
        left_out=_left_out(folder, stages),
        gap=_gap(metrics),
        trust=_trust(scores, stages, metrics),
        metrics=metrics,
        notes=list(scores.get("notes", [])),
        funnel=_funnel(stages),
        stages=(table := [_stage(name, stages[name]) for name in _ordered(stages)]),
        total=_total(table),
        curve=_curve(_rows(folder / "student" / "train_log.jsonl")),
        cards=[_card(number, row) for number, row in enumerate(answers[:MAX_CARDS], start=1)],
        prompts=len(answers),
        dropped=[_dropped(row) for row in dropped],
        dropped_total=dropped_total,
        facts=_facts(record, _object(folder / "student" / "base.json"), scores, recipe),
        versions=dict(record.get("versions", {})),
        files=[(name, file, digest) for name in _ordered(stages) for file, digest in _outputs(stages[name])],
        recipe=recipe,
    )


def render(page: Page) -> str:
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
        page=page,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'",
        models=MODELS,
        table_models=TABLE_MODELS,
        open_cards=OPEN_CARDS,
    )


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but tab and line feed, direction marks, zero-width ones (not the joiners that scripts and emoji
need), lone surrogates (which UTF-8 cannot hold) and tag characters."""


def visible(text: str) -> str:
    """The text with characters that hide or reorder others shown as ␀ or ⟦U+202E⟧; line ends become line feeds."""
    return _HIDDEN.sub(_mark, text.replace("\r\n", "\n"))


def _mark(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"⟦U+{code:04X}⟧"


def _plain(value: Any) -> Any:
    return "–" if value is None else visible(value) if isinstance(value, str) else value


def number(value: float | None) -> str:
    """A count with its thousands set apart; a dash for none."""
    return "–" if value is None else f"{value:,.0f}"


def fixed(value: float | None, decimals: int, signed: bool = False) -> str:
    """A value with so many decimals and a true minus sign; a dash for none."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''},.{decimals}f}".replace("-", "−")  # noqa: RUF001 - typography


def percent(share: float | None) -> str:
    """A share as whole percent; a dash for none."""
    return "–" if share is None else f"{100 * share:.0f}%".replace("-", "−")  # noqa: RUF001 - typography


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: 4.2 s, 3 min 20 s, 1 h 05 min."""
    if seconds is None:
        return "–"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Bytes in GB or MB (powers of ten)."""
    if count is None:
        return "–"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(path)) if path.is_file() else []


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


def _finite(value: Any) -> float | None:
    """A number that can be drawn: JSON's NaN and Infinity are none."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _interval(entry: Mapping[str, Any] | None, key: str = "mean") -> Interval | None:
    mean = _finite((entry or {}).get(key))
    if entry is None or mean is None:
        return None
    return Interval(mean, _finite(entry.get("low")), _finite(entry.get("high")))


# ---- what the comparison found


def _metric(name: str, entry: Mapping[str, Any]) -> Metric:
    by = {model: value for model in MODELS if (value := _interval(entry.get("by", {}).get(model)))}
    difference = entry.get("student_minus_base")
    return Metric(
        name=name,
        title=entry.get("title") or name,
        unit=entry.get("unit") or "",
        better=entry.get("better") or "",
        explanation=entry.get("explanation") or "",
        note=entry.get("note"),
        by=by,
        difference=_interval(difference),
        judgement=_judgement(entry.get("better"), by, difference),
        gap=_interval(entry.get("gap_closed"), "share"),
        decimals=_decimals(value.mean for value in by.values()),
    )


def _decimals(values: Iterable[float]) -> int:
    """Three figures of the greatest value, and no more than three decimals."""
    greatest = max((abs(value) for value in values), default=0)
    return 0 if greatest >= 1000 else 1 if greatest >= 100 else 2 if greatest >= 1 else 3


def _judgement(better: str | None, by: Mapping[str, Interval], difference: Mapping[str, Any] | None) -> str | None:
    if _interval(difference) is None or difference is None:
        return None
    if not difference.get("excludes_zero"):
        return "unclear"
    gain = difference["mean"] if better == "higher" else -difference["mean"]
    if better == "near 1":
        if not {"base", "student"} <= by.keys():
            return "unclear"
        gain = abs(by["base"].mean - 1) - abs(by["student"].mean - 1)
    return "better" if gain > 0 else "worse" if gain < 0 else "unclear"


def _gap(metrics: Sequence[Metric]) -> Gap | None:
    """The first metric of which a share of the gap is known, else the first with a base and a student."""
    drawable = [metric for metric in metrics if {"base", "student"} <= metric.by.keys()]
    metric = next((metric for metric in drawable if metric.gap), next(iter(drawable), None))
    if metric is None:
        return None
    low = min(value.reach[0] for value in metric.by.values())
    high = max(value.reach[1] for value in metric.by.values())
    margin = (high - low) * 0.04
    return Gap(metric, Scale(low - margin, high + margin, flip=metric.better == "lower"))


def _headline(stages: Mapping[str, Any]) -> str:
    sessions = _counts(stages, "collect").get("sessions")
    if "train" in stages:
        return "The student has been trained; it has not been compared with its teacher yet."
    if sessions is not None:
        return f"{number(sessions)} answers collected; no student has been trained on them yet."
    return "Nothing has been collected yet."


def _trust(scores: Mapping[str, Any], stages: Mapping[str, Any], metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    """What a reader needs in order to believe the headline; only what the run's files say."""
    if not scores:
        return []
    facts = [("Held-out prompts", f"{number(scores.get('prompts'))}, never trained on")]
    if split := _split(stages):
        facts.append(("Split", split))
    if cut := {model: share for model in MODELS if (share := _finite(scores.get("cut_share", {}).get(model))) is not None}:
        facts.append(("Answers cut", ", ".join(f"{MODELS[model].lower()} {percent(share)}" for model, share in cut.items())))
    if ceiling := _ceiling(scores, metrics):
        facts.append(("Ceiling", ceiling))
    if scores.get("method"):
        facts.append(("Intervals", str(scores["method"])))
    return facts


def _split(stages: Mapping[str, Any]) -> str | None:
    by_rule = _counts(stages, "curate").get("by_rule")
    if by_rule is None:
        return None
    near = sum(rows for reason, rows in by_rule.items() if str(reason).split("/")[-1] == "held_out")
    if near == 0:
        return "no training row was a near-duplicate of a held-out prompt"
    return f"{number(near)} near-duplicates of held-out prompts removed from the training rows"


def _ceiling(scores: Mapping[str, Any], metrics: Sequence[Metric]) -> str | None:
    """The teacher's own second answer: no student can be expected to be more like the first one."""
    again = [metric for metric in metrics if "teacher_again" in metric.by]
    if not again:
        return None
    described = scores.get("models", {}).get("teacher_again", {}).get("description") or "the teacher asked a second time"
    likeness = next((metric for metric in again if metric.name == "rouge_l"), again[0])
    return f"{described}; {likeness.title} {fixed(likeness.by['teacher_again'].mean, likeness.decimals)}"


# ---- what the stages did


def _counts(stages: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict((stages.get(name) or {}).get("counts") or {})


def _ordered(stages: Mapping[str, Any]) -> list[str]:
    return sorted(stages, key=lambda name: (STAGES.index(name) if name in STAGES else 0, name))


def _outputs(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list((stage.get("outputs") or {}).items())


def _warnings(stages: Mapping[str, Any]) -> list[str]:
    unfinished = [(name, stages[name]) for name in _ordered(stages) if stages[name].get("status") != "done"]
    return [
        f"{name} is {stage.get('status', 'unknown')}" + (f": {stage['detail']}" if stage.get("detail") else "")
        for name, stage in unfinished
    ]


def _left_out(folder: Path, stages: Mapping[str, Any]) -> list[str]:
    needed = {
        "metrics and headline": "scores.json",
        "answers side by side": "answers.jsonl",
        "loss curve": "student/train_log.jsonl",
        "dropped rows": "dropped.jsonl",
    }
    missing = [f"{section} (no {file})" for section, file in needed.items() if not _has(folder, file)]
    return missing + (["funnel and costs (no stage has run)"] if not stages else [])


def _funnel(stages: Mapping[str, Any]) -> list[Bar]:
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
    return list(_placed([bar for bar in bars if bar.rows]))


def _placed(bars: Sequence[Bar]) -> Iterator[Bar]:
    """The bars with their places: what is taken out lies under the end of what it is taken from."""
    longest = max((bar.rows for bar in bars), default=0)
    left = 0
    for bar in bars:
        taken = bar.kind in ("lost", "test")
        left = max(0, left - bar.rows) if taken else bar.rows
        start = left if taken else 0
        yield Bar(bar.label, bar.rows, bar.kind, round(100 * start / longest, 2), round(100 * bar.rows / longest, 2))


def _lost(verb: str, reasons: Mapping[str, int] | None) -> list[Bar]:
    """The most frequent reason first."""
    ranked = sorted((reasons or {}).items(), key=lambda item: (-item[1], item[0]))
    return [Bar(f"{verb}: {_reason(reason)}", rows, "lost") for reason, rows in ranked]


def _reason(code: str) -> str:
    """`length/too_short` as a reader says it: too short (length)."""
    rule, _, reason = code.replace("_", " ").rpartition("/")
    return f"{reason} ({rule})" if rule not in ("", reason) else reason


def _stage(name: str, stage: Mapping[str, Any]) -> dict[str, Any]:
    requests, tokens = stage.get("requests") or {}, stage.get("tokens") or {}
    return {
        "name": name,
        "status": stage.get("status", "unknown"),
        "seconds": _finite(stage.get("seconds")),
        **{key: _finite(requests.get(key)) for key in ("asked", "replayed", "failed")},
        **{key: _finite(tokens.get(key)) for key in ("prompt", "completion")},
        "usd": _finite(stage.get("usd")),
        "peak": _finite(stage.get("peak_memory_bytes")),
    }


def _total(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over the stages that have the figure; the peak is the highest of them."""

    def known(key: str) -> list[float]:
        return [row[key] for row in rows if row[key] is not None]

    summed = ("seconds", "asked", "replayed", "failed", "prompt", "completion", "usd")
    sums = {key: sum(known(key)) if known(key) else None for key in summed}
    return {"name": "total", "status": "", **sums, "peak": max(known("peak"), default=None)}


def _curve(log: Sequence[Mapping[str, Any]]) -> Curve | None:
    steps = [row for row in log if "loss" in row and "step" in row]
    points = [_point(row) for row in steps if _finite(row["loss"]) is not None]
    evaluations = [_point(row) for row in log if _finite(row.get("eval_loss")) is not None and "step" in row]
    if not points:
        return None
    every = math.ceil(len(points) / MAX_POINTS)
    drawn = points[::every] + ([points[-1]] if (len(points) - 1) % every else [])
    losses = [row["loss"] for row in points] + [row["eval_loss"] for row in evaluations]
    x_ticks = ticks(0, max(row["step"] for row in [*points, *evaluations]), whole=True)
    y_ticks = ticks(min(losses), max(losses))
    x, y = Scale(0, x_ticks[-1]), Scale(y_ticks[0], y_ticks[-1], flip=True)
    return Curve(drawn, evaluations, x, y, x_ticks, y_ticks, every, len(steps) - len(points))


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("step", "steps", "loss", "eval_loss", "learning_rate", "tokens", "seconds")}


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round values (steps of 1, 2 or 5 times a power of ten) that enclose low and high, about five of them."""
    rough = max((high - low) / 5, 1 if whole else 1e-6)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


# ---- answers and rows


def _text(value: Any) -> Text:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Text(text[:MAX_TEXT], max(0, len(text) - MAX_TEXT))


def _turns(messages: Iterable[Mapping[str, Any]]) -> list[tuple[str, Text]]:
    return [(str(turn.get("role", "")), _text(turn.get("content", ""))) for turn in messages]


def _opening(turns: Sequence[tuple[str, Text]]) -> str:
    """The start of the last question, on one line."""
    asked = [text.shown for role, text in turns if role == "user"] or [text.shown for _, text in turns]
    return " ".join(asked[-1].split())[:200] if asked else ""


def _card(number: int, row: Mapping[str, Any]) -> Card:
    turns = _turns(row.get("messages", []))
    answers, scores = row.get("answers") or {}, row.get("scores") or {}
    shown = [_answer(model, answers.get(model), scores.get(model) or {}) for model in MODELS]
    return Card(number, turns, _opening(turns), shown, _finite((scores.get("student") or {}).get("rouge_l")))


def _answer(model: str, answer: Mapping[str, Any] | None, scores: Mapping[str, Any]) -> Answer:
    if answer is None:
        return Answer(model, MODELS[model], None, [])
    badges = [_ending(answer)]
    for name, title in BADGES.items():
        if (value := _finite(scores.get(name))) is not None:
            badges.append(Badge(f"{title} {fixed(value, 2)}", name))
    return Answer(model, MODELS[model], _text(answer.get("text", "")), badges)


def _ending(answer: Mapping[str, Any]) -> Badge:
    finish = answer.get("finish", "unknown")
    hint = f"{number(_finite(answer.get('tokens')))} tokens"
    if finish == "stop":
        return Badge("stopped", f"ended by itself after {hint}")
    return Badge("cut", f"cut at {hint}", True) if finish == "length" else Badge(str(finish), hint, True)


def _failing(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [verdict for verdict in row.get("verdicts", []) if not verdict.get("keep")]


def _spread(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """At most `MAX_DROPPED` rows, of each reason in turn, and how many there are."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    total = 0
    for row in rows:
        total += 1
        reason = next(((verdict.get("rule"), verdict.get("reason")) for verdict in _failing(row)), None)
        group = groups.setdefault(reason, [])
        if len(group) < MAX_DROPPED:
            group.append(row)
    turns = zip_longest(*groups.values())
    return [row for turn in turns for row in turn if row is not None][:MAX_DROPPED], total


def _dropped(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = _turns(row.get("messages", []))
    verdicts = [
        {key: _shown(verdict.get(key)) for key in ("rule", "reason", "value", "threshold", "neighbour")}
        for verdict in _failing(row)
    ]
    return {"opening": _opening(turns), "turns": turns, "verdicts": verdicts}


# ---- where it comes from


def _facts(
    record: Mapping[str, Any], base: Mapping[str, Any], scores: Mapping[str, Any], recipe: str | None
) -> list[tuple[str, str]]:
    """What a reader needs in order to name, cite and repeat the run."""
    facts = [("Run", record.get("name")), ("Started", record.get("created")), ("distill", record.get("version"))]
    facts += [(f"Teacher {key}", value) for key, value in (record.get("teacher") or {}).items()]
    facts += [(f"Student {key}", value) for key, value in base.items()]
    for model in MODELS:
        entry = scores.get("models", {}).get(model, {})
        facts.append((f"Compared as {MODELS[model].lower()}", entry.get("description") or entry.get("model")))
    facts += [("Seed", _seed(recipe)), ("Recipe SHA-256", record.get("recipe_sha256"))]
    return [(term, _shown(value)) for term, value in facts if value not in (None, "", {}, [])]


def _shown(value: Any) -> str | None:
    """A value on one line: three figures of a fraction, ranges of whole numbers (layers)."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return f"{_ranges(value)} ({len(value)})"
    return json.dumps(value, ensure_ascii=False)


def _ranges(values: Sequence[int]) -> str:
    breaks = [0, *(index for index, (a, b) in enumerate(pairwise(values), start=1) if b != a + 1), len(values)]
    spans = [values[start:end] for start, end in pairwise(breaks)]
    return ", ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in islice(spans, 40))  # noqa: RUF001


def _seed(recipe: str | None) -> str | None:
    """The line `seed: …` of the resolved recipe; read as text, so that a damaged recipe stops no report."""
    found = re.search(r"^seed:\s*(\S+)", recipe or "", re.MULTILINE)
    return found[1] if found else None
