"""Answers side by side: the worst inline, all of them as data for the page's viewer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

from distill.errors import shorten
from distill.report import token_shading
from distill.report.numbers import Row, as_text, fixed, number
from distill.run import funnel
from distill.run.scores import Comparison, finite
from distill.text import references
from distill.text.tokens import visible
from distill.types import MODELS

MAX_TEXT = 4_000
"""Characters shown of one text; few are so long, and 3 MB hold 500 prompts with four of them."""
MAX_PAGE_TEXT = 1_900_000
"""Approximate limit in bytes of all texts together, beyond which each is cut shorter."""
LEAST_TEXT = 400
REASON_PART = 10
"""A judge's reason may have a tenth of the characters of a text; a prompt has up to nine reasons."""
BADGES = {"accuracy": "right", "rouge_l": "ROUGE-L", "nll_per_byte": "NLL/byte", "repetition": "repetition"}
"""Metrics shown on an answer that has them."""
VIEWED = frozenset((*BADGES, "field_f1", "similarity", "style_distance", "instructions"))
"""Measures that the viewer shows of an answer."""
MAX_NEAR = 160
"""Characters shown of a nearby training prompt."""
WORST = 5
SUBSTANCE = ("similarity", "rouge_l", "nll_per_byte")
ORDER = {"loss": 0, "unparsed": 1, "tie": 2, "win": 3}


def worst_first(answers: Sequence[Row]) -> list[Row]:
    """The prompts, the worst for the student first: by outcome and margin, else by likeness to the teacher."""
    return sorted(answers, key=_badness)


def _badness(row: Row) -> tuple[int, float, float]:
    outcome = row.get("outcome") or {}
    margin = finite(outcome.get("margin"))
    rouge = finite(((row.get("scores") or {}).get("student") or {}).get("rouge_l"))
    return ORDER.get(str(outcome.get("value")), 1), 0.0 if margin is None else margin, 1.0 if rouge is None else rouge


# Inline


def text_of(value: Any) -> dict[str, Any]:
    """The shown part of a text, and the number of characters left out."""
    text = value if isinstance(value, str) else as_text(value) or ""
    return {"shown": text[:MAX_TEXT], "rest": max(0, len(text) - MAX_TEXT)}


def conversation(row: Row) -> dict[str, Any]:
    """The turns, and the start of the last question on one line."""
    messages = row.get("messages") or []
    questions = [turn.get("content") for turn in messages if turn.get("role") == "user"]
    turns = [{"role": turn.get("role"), "text": text_of(turn.get("content"))} for turn in messages]
    return {"turns": turns, "opening": " ".join(str(questions[-1]).split())[:200] if questions else ""}


def card(row: Row, titles: Mapping[str, str]) -> dict[str, Any]:
    """One held-out prompt with the answers to it."""
    answers, scores = row.get("answers") or {}, row.get("scores") or {}
    columns = [
        _answer(model, answers.get(model), scores.get(model) or {})
        for model in ("base", *(["previous"] if "previous" in answers else []), "student", "teacher")
    ]
    reference = _reference(row, MAX_TEXT)
    entry = {"id": str(row.get("id")), **conversation(row), "answers": columns, "why": why(row, titles)}
    return {**entry, "reference": reference}


def _reference(row: Row, limit: int) -> str | None:
    """The prompt's right answer, shortened; `None` without one."""
    shown = references.shown(row)
    return None if shown is None else shorten(shown, limit)


def why(row: Row, titles: Mapping[str, str]) -> str:
    """The outcome of a prompt, in one line."""
    outcome, coverage = row.get("outcome") or {}, row.get("coverage") or {}
    words = {"win": "better than", "loss": "worse than", "tie": "no better than", "unparsed": "not decided against"}
    pieces = []
    if outcome:
        against = outcome.get("against") or "base"
        margin = fixed(finite(outcome.get("margin")), 2, signed=True)
        by = "the judge" if outcome.get("by") == "judge" else titles.get(str(outcome.get("by")), "a measure")
        pieces.append(f"{words.get(str(outcome.get('value')), 'unknown against')} the {against} by {by} ({margin})")
    if coverage.get("verdict") not in (None, "fine"):
        pieces.append(str(coverage["verdict"]))
    return "; ".join(pieces)


def _answer(model: str, answer: Row | None, scores: Row) -> dict[str, Any]:
    badges = [_ending(answer)] if answer else []
    for name, title in BADGES.items():
        if (value := finite(scores.get(name))) is not None:
            badges.append({"text": f"{title} {fixed(value, 2)}", "hint": name, "alert": False})
    return {"model": model, "text": text_of(answer.get("text")) if answer else None, "badges": badges}


def _ending(answer: Row) -> dict[str, Any]:
    finish, tokens = answer.get("finish") or "unknown", number(finite(answer.get("tokens"))) or "?"
    text = {"stop": "stopped", "length": "cut", "unknown": "end unknown"}.get(finish, finish)
    return {"text": text, "hint": f"{text} after {tokens} tokens", "alert": finish == "length"}


def samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The student's answers at the first and the last evaluation during training, beside the teacher's."""
    by_id: dict[str, dict[str, Any]] = {}
    for row in rows:
        sample = by_id.setdefault(str(row.get("id")), {**conversation(row), "teacher": text_of(row.get("teacher"))})
        answer = {"step": row.get("step"), "finish": row.get("finish"), "text": text_of(row.get("student"))}
        sample.setdefault("first", answer)
        sample["last"] = answer
    return list(by_id.values())


# As data


def data(answers: Sequence[Row], scores: Comparison, run: str) -> dict[str, Any]:
    """All prompts for the viewer, the worst first; texts that hide characters show them, and long ones are cut."""
    limit, titles, rows = _limit(answers), titles_of(scores), worst_first(answers)
    tokens, with_tokens = token_shading.select(rows, limit)
    return {
        "run": run,
        "models": scores.titles,
        "lead": scores.lead,
        "titles": titles,
        "substance": next((name for name in SUBSTANCE if name in titles), None),
        "surprise": {
            "alphabet": token_shading.ALPHABET,
            "steps": token_shading.STEPS,
            "shown": len(tokens),
            "known": with_tokens,
        },
        "prompts": [_prompt(row, limit, titles, tokens) for row in rows],
    }


def titles_of(scores: Comparison) -> dict[str, str]:
    """Title of each measure."""
    return {name: measure.title or name for name, measure in scores.metrics.items()}


def _limit(answers: Sequence[Row]) -> int:
    """Characters shown per text, so that all texts together stay within `MAX_PAGE_TEXT`."""
    lengths = [len(text.encode("utf-8", "replace")) for row in answers for text in _texts(row)]
    limit, room = MAX_TEXT, MAX_PAGE_TEXT - token_shading.bytes_of(answers)
    reasons = [len(one.encode("utf-8", "replace")) for row in answers for one in _reasons(row.get("judge"))]
    while limit > LEAST_TEXT and _sum(lengths, limit) + _sum(reasons, limit // REASON_PART) > room:
        limit = max(LEAST_TEXT, int(limit * 0.9))
    return limit


def _sum(lengths: Sequence[int], limit: int) -> int:
    return sum(min(limit, length) for length in lengths)


def _reasons(judge: Any) -> Iterator[str]:
    """All of the judge's reasons for a prompt."""
    if isinstance(judge, Mapping):
        for name, value in judge.items():
            yield from [value] if name == "reason" and isinstance(value, str) else _reasons(value)
    elif isinstance(judge, list):
        yield from (reason for each in judge for reason in _reasons(each))


def _shorter(judge: Any, limit: int) -> Any:
    """The judge's entry with every reason shortened."""
    if isinstance(judge, Mapping):
        return {
            name: shorten(value, limit) if name == "reason" and isinstance(value, str) else _shorter(value, limit)
            for name, value in judge.items()
        }
    return [_shorter(each, limit) for each in judge] if isinstance(judge, list) else judge


def _texts(row: Row) -> list[str]:
    by_model = [answer for answer in (row.get("answers") or {}).values() if isinstance(answer, dict)]
    texts = [turn.get("content") for turn in row.get("messages") or []]
    texts += row.get("turns") or []
    texts += [text for answer in by_model for text in (answer.get("text"), *answer.get("earlier", ()))]
    return [text for text in texts if isinstance(text, str)]


def _prompt(row: Row, limit: int, titles: Mapping[str, str], tokens: Mapping[str, Any]) -> dict[str, Any]:
    """One prompt for the viewer; empty entries are left out."""
    optional = {
        "turns": [_shortened(turn, limit) for turn in row.get("turns") or []],
        "reference": _reference(row, limit),
        "outcome": row.get("outcome"),
        "judge": _shorter(row.get("judge"), limit // REASON_PART),
        "leak": row.get("leak"),
        "coverage": _near(row.get("coverage") or {}),
        "surprise": tokens.get(str(row.get("id"))),
    }
    entry: dict[str, Any] = _visible(
        {
            "id": str(row.get("id")),
            "category": str(row.get("category") or "all"),
            "messages": [
                {"role": turn.get("role"), "text": _shortened(turn.get("content"), limit)}
                for turn in row.get("messages") or []
            ],
            "answers": {
                model: _answer_data(answer, limit)
                for model, answer in (row.get("answers") or {}).items()
                if model in MODELS and isinstance(answer, dict)
            },
            "scores": {
                model: {
                    name: round(number, 4)
                    for name, value in each.items()
                    if name in VIEWED and (number := finite(value)) is not None
                }
                for model, each in (row.get("scores") or {}).items()
                if model in MODELS
            },
            "why": why(row, titles),
            **{name: value for name, value in optional.items() if value},
        }
    )
    return entry


def _near(coverage: Row) -> dict[str, Any]:
    """A prompt's coverage, with the nearest training prompts shortened."""
    near = [{**one, "prompt": str(one.get("prompt"))[:MAX_NEAR]} for one in coverage.get("nearest") or []]
    return {**coverage, "nearest": near} if coverage else {}


def _answer_data(answer: Row, limit: int) -> dict[str, Any]:
    earlier = [_shortened(text, limit) for text in answer.get("earlier") or []]
    text = _shortened(answer.get("text"), limit)
    entry = {"text": text, "finish": answer.get("finish"), "tokens": answer.get("tokens")}
    return {**entry, **({"earlier": earlier} if earlier else {})}


def _shortened(value: Any, limit: int) -> str:
    text = value if isinstance(value, str) else as_text(value) or ""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n\n[{number(len(text) - limit)} more characters are in answers.jsonl]"


def _visible(value: Any) -> Any:
    """The value with hidden characters of its texts made visible, and numbers that JSON lacks as None."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {str(key): _visible(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(each) for each in value]
    return value if value is None or isinstance(value, (bool, int)) else finite(value)


def in_script(value: Any) -> str:
    """JSON for a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


MAX_DROPPED = 10
MAX_TOKENS = 1_200
"""Tokens shown of the session whose mask is shown."""


def spread(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """At most `MAX_DROPPED` rows, one of each reason in turn, and the number of all rows."""
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


def _failing(row: Row) -> list[Row]:
    return [verdict for verdict in row.get("verdicts") or [] if not verdict.get("keep")]


def dropped_row(row: Row) -> dict[str, Any]:
    """The conversation, and the verdicts against it."""
    keys = ("rule", "reason", "value", "threshold", "neighbour")
    return {
        **conversation(row),
        "verdicts": [{key: _figure(verdict.get(key)) for key in keys} for verdict in _failing(row)],
    }


def _figure(value: Any) -> str | None:
    """A verdict's value; None for an empty one."""
    return None if value in (None, "") else funnel.short(value)


def mask(masks: Row) -> dict[str, Any] | None:
    """The first session of student/masks.json as alternating runs of trained and other tokens; None without one."""
    session = next(iter(masks.get("sessions") or []), None)
    if not session:
        return None
    tokens = list(zip(session.get("texts") or [], session.get("trained") or [], strict=False))
    runs = [
        {"trained": bool(trained), "text": "".join(str(text) for text, _ in each)}
        for trained, each in groupby(tokens[:MAX_TOKENS], key=lambda token: token[1])
    ]
    return {
        "id": str(session.get("id")),
        "template": masks.get("template"),
        "checked": masks.get("checked"),
        "runs": runs,
        "trained": sum(bool(trained) for _, trained in tokens),
        "tokens": len(tokens),
    }
