"""Answers side by side: the worst inline, all of them as data for the page's viewer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

from distill.errors import shorten
from distill.report import token_shading
from distill.report.comparison import MODELS
from distill.report.numbers import Row, finite, fixed, number, shown
from distill.run import funnel
from distill.text.tokens import visible

MAX_TEXT = 4_000
"""Characters kept of one text; 500 prompts with four such answers are the most that 3 MB hold, and few are so long."""
MAX_PAGE_TEXT = 1_900_000
"""Bytes of all texts together, about; where they are more, each is cut shorter."""
LEAST_TEXT = 400
BADGES = {"rouge_l": "ROUGE-L", "nll_per_byte": "NLL/byte", "repetition": "repetition"}
"""Metrics shown on each answer, where an answer has them."""
VIEWED = frozenset((*BADGES, "similarity", "style_distance", "instructions"))
"""Measures that the viewer shows of an answer."""
MAX_NEAR = 160
"""Characters of a training prompt that is near."""
WORST = 5
SUBSTANCE = ("similarity", "rouge_l", "nll_per_byte")
ORDER = {"loss": 0, "unparsed": 1, "tie": 2, "win": 3}


def ranked(answers: Sequence[Row]) -> list[Row]:
    """The prompts, the worst for the student first: by outcome and margin, else by likeness to the teacher."""
    return sorted(answers, key=_badness)


def _badness(row: Row) -> tuple[int, float, float]:
    outcome = row.get("outcome") or {}
    margin = finite(outcome.get("margin"))
    rouge = finite(((row.get("scores") or {}).get("student") or {}).get("rouge_l"))
    return ORDER.get(str(outcome.get("value")), 1), 0.0 if margin is None else margin, 1.0 if rouge is None else rouge


# In plain view


def text_of(value: Any) -> dict[str, Any]:
    """A text as far as it is shown, and how many characters are not."""
    text = value if isinstance(value, str) else shown(value) or ""
    return {"shown": text[:MAX_TEXT], "rest": max(0, len(text) - MAX_TEXT)}


def conversation(row: Row) -> dict[str, Any]:
    """The turns, and the start of the last question on one line."""
    messages = row.get("messages") or []
    asked = [turn.get("content") for turn in messages if turn.get("role") == "user"]
    turns = [{"role": turn.get("role"), "text": text_of(turn.get("content"))} for turn in messages]
    return {"turns": turns, "opening": " ".join(str(asked[-1]).split())[:200] if asked else ""}


def card(row: Row, titles: Mapping[str, str]) -> dict[str, Any]:
    """One held-out prompt with the answers to it."""
    answers, scores = row.get("answers") or {}, row.get("scores") or {}
    info = [_answer(model, answers.get(model), scores.get(model) or {}) for model in MODELS if model != "teacher_again"]
    return {"id": str(row.get("id")), **conversation(row), "answers": info, "why": why(row, titles)}


def why(row: Row, titles: Mapping[str, str]) -> str:
    """One line on how the prompt came out."""
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
    """What the student said to some prompts at the first and at the last evaluation, beside the teacher's answer."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = found.setdefault(str(row.get("id")), {**conversation(row), "teacher": text_of(row.get("teacher"))})
        reply = {"step": row.get("step"), "finish": row.get("finish"), "text": text_of(row.get("student"))}
        known.setdefault("first", reply)
        known["last"] = reply
    return list(found.values())


# As data


def data(answers: Sequence[Row], scores: Row, run: str) -> dict[str, Any]:
    """All prompts for the viewer, the worst first; texts that hide characters show them, and long ones are cut."""
    limit, titles, rows = _limit(answers), titles_of(scores), ranked(answers)
    tokens, known = token_shading.chosen(rows, limit)
    return {
        "run": run,
        "models": MODELS,
        "lead": scores.get("lead"),
        "titles": titles,
        "substance": next((name for name in SUBSTANCE if name in titles), None),
        "surprise": {
            "alphabet": token_shading.ALPHABET,
            "steps": token_shading.STEPS,
            "shown": len(tokens),
            "known": known,
        },
        "prompts": [_prompt(row, limit, titles) | _tokens(row, tokens) for row in rows],
    }


def titles_of(scores: Row) -> dict[str, str]:
    """What each measure is called."""
    return {name: str(entry.get("title") or name) for name, entry in (scores.get("metrics") or {}).items()}


def _limit(answers: Sequence[Row]) -> int:
    """Characters of a text, so that all together stay within bounds."""
    lengths = [len(text.encode("utf-8", "replace")) for row in answers for text in _texts(row)]
    limit, room = MAX_TEXT, MAX_PAGE_TEXT - token_shading.bytes_of(answers)
    reasons = [len(one.encode("utf-8", "replace")) for row in answers for one in _reasons(row.get("judge"))]
    while limit > LEAST_TEXT and _sum(lengths, limit) + _sum(reasons, _of_reasons(limit)) > room:
        limit = max(LEAST_TEXT, int(limit * 0.9))
    return limit


def _sum(lengths: Sequence[int], limit: int) -> int:
    return sum(min(limit, length) for length in lengths)


def _of_reasons(limit: int) -> int:
    """Characters of a judge's reason, where texts have so many: there are up to nine of them to a prompt."""
    return limit // 10


def _reasons(judge: Any) -> Iterator[str]:
    """Every reason that the judge gave of a prompt."""
    if isinstance(judge, Mapping):
        for name, value in judge.items():
            yield from [value] if name == "reason" and isinstance(value, str) else _reasons(value)
    elif isinstance(judge, list):
        yield from (reason for each in judge for reason in _reasons(each))


def _shorter(judge: Any, limit: int) -> Any:
    """The same with each reason cut."""
    if isinstance(judge, Mapping):
        return {
            name: shorten(value, limit) if name == "reason" and isinstance(value, str) else _shorter(value, limit)
            for name, value in judge.items()
        }
    return [_shorter(each, limit) for each in judge] if isinstance(judge, list) else judge


def _texts(row: Row) -> list[str]:
    reply = [answer for answer in (row.get("answers") or {}).values() if isinstance(answer, dict)]
    texts = [turn.get("content") for turn in row.get("messages") or []]
    texts += row.get("turns") or []
    texts += [text for answer in reply for text in (answer.get("text"), *answer.get("earlier", ()))]
    return [text for text in texts if isinstance(text, str)]


def _prompt(row: Row, limit: int, titles: Mapping[str, str]) -> dict[str, Any]:
    """One prompt under short keys; what there is not is left out."""
    info = {
        "turns": [_cut(turn, limit) for turn in row.get("turns") or []],
        "outcome": row.get("outcome"),
        "judge": _shorter(row.get("judge"), _of_reasons(limit)),
        "leak": row.get("leak"),
        "coverage": _near(row.get("coverage") or {}),
    }
    shown: dict[str, Any] = _visible(
        {
            "id": str(row.get("id")),
            "category": str(row.get("category") or "all"),
            "messages": [
                {"role": turn.get("role"), "text": _cut(turn.get("content"), limit)}
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
            **{name: value for name, value in info.items() if value},
        }
    )
    return shown


def _tokens(row: Row, tokens: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    info = tokens.get(str(row.get("id")))
    return {"surprise": info} if info else {}


def _near(coverage: Row) -> dict[str, Any]:
    """What was taught near a prompt, each on a line."""
    near = [{**one, "prompt": str(one.get("prompt"))[:MAX_NEAR]} for one in coverage.get("nearest") or []]
    return {**coverage, "nearest": near} if coverage else {}


def _answer_data(answer: Row, limit: int) -> dict[str, Any]:
    earlier = [_cut(text, limit) for text in answer.get("earlier") or []]
    info = {"text": _cut(answer.get("text"), limit), "finish": answer.get("finish"), "tokens": answer.get("tokens")}
    return {**info, **({"earlier": earlier} if earlier else {})}


def _cut(value: Any, limit: int) -> str:
    text = value if isinstance(value, str) else shown(value) or ""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n\n[{number(len(text) - limit)} more characters are in answers.jsonl]"


def _visible(value: Any) -> Any:
    """Every text in it with hidden characters shown, and no number that JSON does not have."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {str(key): _visible(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(each) for each in value]
    return value if value is None or isinstance(value, (bool, int)) else finite(value)


def in_script(value: Any) -> str:
    """JSON that can stand inside a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


MAX_DROPPED = 10
MAX_TOKENS = 1_200
"""Tokens shown of a session whose mask is shown."""


def spread(rows: Iterable[Row]) -> tuple[list[Row], int]:
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


def _failing(row: Row) -> list[Row]:
    return [verdict for verdict in row.get("verdicts") or [] if not verdict.get("keep")]


def dropped_row(row: Row) -> dict[str, Any]:
    """The conversation, and what every rule had against it."""
    keys = ("rule", "reason", "value", "threshold", "neighbour")
    return {
        **conversation(row),
        "verdicts": [{key: _figure(verdict.get(key)) for key in keys} for verdict in _failing(row)],
    }


def _figure(value: Any) -> str | None:
    """What stands in a verdict, where nothing may be an empty text and a number per text."""
    return None if value in (None, "") else funnel.short(value)


def mask(masks: Row) -> dict[str, Any] | None:
    """The first session of student/masks.json in runs of tokens, trained and not in turn; None where there is none."""
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
