"""The pairs that the student does worst on, for a terminal, with what student and teacher say apart marked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from distill.console import Paint
from distill.errors import RunFolderError
from distill.reporting.pairs import ranked, titles_of, why
from distill.rows import read_jsonl
from distill.run import comparison_remark
from distill.text import visible

MAX_TEXT = 3_000
"""Characters shown of one text."""
_PIECES = re.compile(r"\S+\s*|\s+")


def lines(run: Path, count: int, paint: Paint) -> Iterator[str]:
    """The `count` worst prompts of a comparison. Raises `RunFolderError` where there is none.

    `paint(text, what)` dresses what only the student (`added`) or only the teacher (`removed`) says, and headings.
    """
    path, scores = run / "answers.jsonl", run / "scores.json"
    if not path.is_file() or not scores.is_file():
        raise RunFolderError(f"{run} was not compared yet; type: distill compare {run}")
    titles = titles_of(json.loads(scores.read_text(encoding="utf-8")))
    rows = ranked(list(read_jsonl(path)))
    yield from filter(None, [comparison_remark(run)])
    for place, row in enumerate(rows[:count], start=1):
        yield paint(
            f"{place} of {len(rows)} · {visible(str(row.get('id')))} · {why(row, titles) or 'no outcome'}", "head"
        )
        yield from _pair(row, paint)
        yield ""


def _pair(row: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    for turn in row.get("messages") or []:
        yield f"{paint(str(turn.get('role')), 'who')}: {_shown(turn.get('content'))}"
    for turn in row.get("turns") or []:
        yield f"{paint('then', 'who')}: {_shown(turn)}"
    texts = {model: _said(row, model) for model in ("base", "student", "teacher")}
    yield f"{paint('base', 'who')}: {texts['base']}"
    student, teacher = differing(texts["student"], texts["teacher"], paint)
    yield f"{paint('student', 'who')}: {student}"
    yield f"{paint('teacher', 'who')}: {teacher}"
    for game in ((row.get("judge") or {}).get("pairs") or {}).get("student:teacher", {}).get("games", ()):
        yield f"{paint('judge', 'who')} ({game['first']} first): {game['verdict']}. {_shown(game.get('reason'))}"
    for near in (row.get("coverage") or {}).get("nearest", ())[:1]:
        yield f"{paint('nearest in training', 'who')} ({near['similarity']:.2f}): {_shown(near.get('prompt'))}"


def _said(row: Mapping[str, Any], model: str) -> str:
    answer = (row.get("answers") or {}).get(model)
    return "(no answer)" if answer is None else _shown(answer.get("text")) or "(an empty answer)"


def _shown(value: Any) -> str:
    text = visible(value) if isinstance(value, str) else ""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def differing(student: str, teacher: str, paint: Paint) -> tuple[str, str]:
    """Both texts with the words marked that the other one does not have in that place."""
    ours, theirs = _PIECES.findall(student), _PIECES.findall(teacher)
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    left, right = [], []
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        mine, other = "".join(ours[start:end]), "".join(theirs[other_start:other_end])
        left.append(mine if kind == "equal" else _marked(mine, "added", paint))
        right.append(other if kind == "equal" else _marked(other, "removed", paint))
    return "".join(left), "".join(right)


def _marked(text: str, what: str, paint: Paint) -> str:
    """The text between its own white space, marked."""
    inner = text.strip()
    if not inner:
        return text
    start = text.index(inner)
    return f"{text[:start]}{paint(inner, what)}{text[start + len(inner) :]}"
