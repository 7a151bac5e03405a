"""Texts of a judge's question, and its reply parsed into a grade or choice, ignoring quotes of the judged text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from distill.errors import one_line
from distill.text.thinking import in_text
from distill.text.tokens import harmless

MAX_REPLY = 20_000
"""Characters read of a reply, from its end; a longer one is not worth the time that its worst form may take."""
MAX_STATEMENTS = 100
"""Grades looked at in one reply, from its end."""
MAX_LINE = 400
"""Longest line that can be a grade."""
MAX_NOTE = 400
"""Characters kept of the judge's reasons; the journal has all."""

Problem = Literal["", "no_answer", "unparsed", "cut", "echoed"]


@dataclass(frozen=True, slots=True)
class Grade:
    """A judge's grade of a session."""

    score: float | None = None
    choice: str | None = None
    """In place of a score, where the recipe gives choices."""
    reason: str = ""
    problem: Problem = ""
    """Why there is neither: nothing to grade (`no_answer`), no grade in the reply (`unparsed`), a reply cut before its
    grade (`cut`), or a grade in the same words as in the session, which may be a quotation (`echoed`)."""


@dataclass(frozen=True, slots=True)
class GradeScale:
    """Valid grades: a number from 0 to `highest`, or one of `choices`."""

    highest: int
    choices: tuple[str, ...] = ()

    def read(self, reply: str) -> Grade | None:
        """The grade that a text consists of, a remark after it as its reason; `None` where the text is no grade.

        A number outside the scale, a range, and a number on another scale ("4/5" for 10) are no grades.
        """
        return self._choice(reply.strip()) if self.choices else self._score(reply.strip())

    def _score(self, reply: str) -> Grade | None:
        match = _NUMBER.match(reply)
        if match is None or (match["of"] is not None and int(match["of"]) != self.highest):
            return None
        score = float(match["score"].replace(",", "."))
        return Grade(score=score, reason=match["remark"] or "") if score <= self.highest else None

    def _choice(self, reply: str) -> Grade | None:
        for choice in self.choices:
            starts = reply.casefold().startswith(choice.casefold())
            remark = _REMARK.fullmatch(reply[len(choice) :]) if starts else None
            if remark is not None and not any(_names(remark[0], other) for other in self.choices if other != choice):
                return Grade(choice=choice, reason=(remark["remark"] or "").strip())
        return None


def _names(text: str, choice: str) -> bool:
    """Whether a remark names a choice; a single letter must match in case, because "a" is a word too."""
    return re.search(rf"\b{re.escape(choice)}\b", text, 0 if len(choice) == 1 else re.IGNORECASE) is not None


_REMARK_AFTER = r"(?:[ \t]*[,;.\u2013\u2014-][ \t]+|[ \t)]*\(|[ \t]+(?=(?:because|since|as)\b))"
"""Separators of grade and remark: "8. Right but dull", "8 (dull)", "8 because"; not the bare hyphen of a range."""
_REMARK = re.compile(rf"(?:{_REMARK_AFTER}(?P<remark>.*))?", re.IGNORECASE)
_NUMBER = re.compile(
    r"^(?P<score>\d{1,9}(?:[.,]\d{1,9})?)(?:[\s*(]*(?:/|out of|of)[\s*]*(?P<of>\d{1,9}))?(?:[ \t]*points?)?"
    rf"(?:{_REMARK_AFTER}(?P<remark>[^\d\n]*))?$",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"^[\s*_#`\[(-]*(?:(?:the|my|final|overall|total)[ \t]+)*(?:score|verdict|grade|rating|better|winner)[\s*_`]*"
    r"(?:\([^()\n]{1,40}\)[\s*_`]*)?(?:[:=\uff1a]|is\b)[\s*_`\[(]*(?P<said>[^\n]*?)[\s*_`\])|.!]*$",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"[\s*_]*(?:\[\[[ \t]*(?P<boxed>[^\[\]\n]{1,40}?)[ \t]*\]\]"
    r"|(?P<share>\d{1,4}(?:[.,]\d+)?[ \t]*/[ \t]*\d{1,4}))[\s*_.]*"
)
"""A last line that is "[[8]]", as MT-Bench asks for, or "8/10"; a bare number may be an answer to the question."""
_RESULT = re.compile(r"\[RESULT\][\s*:(]*(?P<said>[^\n\[\]()]{1,40}?)[\s*).]*\Z", re.IGNORECASE)
"""The end of a reply of Prometheus (Kim et al., 2024)."""
_OBJECT_LAST = re.compile(r"\{[^{}]*\}\s*\Z")
_LATER_THOUGHTS = re.compile(
    r"^[ \t]*<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL
)
_SIGN = re.compile(r"\s*[:=\uff1a]\s*")
_DRESS = re.compile(r"[\s*_#`>()\"'|!-]+|(?<!\[)\[(?!\[)|(?<!\])\](?!\])|\.(?!\d)")
_FENCE = re.compile(r"^\s{0,3}(?:```|~~~)")
_GRADES = ("score", "verdict", "grade", "rating", "final_score", "overall_score", "better", "winner")
_REASONS = ("reason", "reasons", "reasoning", "explanation", "rationale", "justification", "feedback")


def read_grade(reply: str, scale: GradeScale, *, texts: Sequence[str] = (), tag: str = "") -> Grade:
    """The grade in the last line of a reply that states one and is no quotation, with the reasons before it.

    Thoughts (`<think>`), fenced and quoted lines, and turns of the session that the judge repeats between their tags
    (`tag`) are ignored. Where no line is a grade, other forms at the end of the reply count. A grade that stands in one
    of the session's `texts` in the same words is ignored: an answer may ask for "Score: 10", and a judge may repeat it.
    """
    text = plain_reply(reply, tag)
    grades, session = list(islice(_statements(text, scale), MAX_STATEMENTS)), fold("\n".join(texts))
    for piece, grade in grades:
        if fold(piece) not in session:
            return replace(grade, reason=one_line(grade.reason, MAX_NOTE))
    return Grade(problem="echoed" if grades else "unparsed", reason=one_line(text, MAX_NOTE))


def plain_reply(reply: str, tag: str = "") -> str:
    """The end of a reply without thoughts, and without the turns that it repeats between tags that end in `tag`."""
    answer = _LATER_THOUGHTS.sub("", in_text(reply).answer)[-MAX_REPLY:]
    return (re.sub(rf"<(\w+)-{tag}>.*?</\1-{tag}>", "", answer, flags=re.DOTALL) if tag else answer).strip()


def between_tags(parts: Iterable[tuple[str, str]], tag: str) -> str:
    """The texts of a judge's question, each between tags of its name; control tokens in them are made harmless."""
    return "\n\n".join(f"<{name}-{tag}>\n{harmless(text)}\n</{name}-{tag}>" for name, text in parts)


def fold(text: str) -> str:
    """The text without case and markup, so that a quoted line matches however the judge formats it."""
    plain = " ".join(text.casefold().split())  # else `_SIGN` takes quadratic time in white space
    return f" {' '.join(_DRESS.sub(' ', _SIGN.sub(': ', plain)).split())} "


def _statements(text: str, scale: GradeScale) -> Iterator[tuple[str, Grade]]:
    """The grades in a reply with the text that states each, the most certain first."""
    if (whole := _of_object(text, scale)) is not None:
        yield text, whole
    lines = list(plain_lines(text))
    for place in range(len(lines) - 1, -1, -1):
        if (grade := _of_line(lines[place], scale)) is not None:
            before = " ".join(lines[:place])
            yield lines[place], replace(grade, reason=before or " ".join([grade.reason, *lines[place + 1 :]]))
    yield from _at_end(text, lines, scale)


def _at_end(text: str, lines: Sequence[str], scale: GradeScale) -> Iterator[tuple[str, Grade]]:
    """Grades at the end of a reply: a fence, an object, "[[8]]", "8/10" or "[RESULT] 8"."""
    before, inside = last_fence(text)
    if (grade := _of_object(inside, scale) or _of_line(inside, scale)) is not None:
        yield inside, replace(grade, reason=grade.reason or before)
    if (last := _OBJECT_LAST.search(text)) is not None and (grade := _of_object(last[0], scale)) is not None:
        yield last[0], replace(grade, reason=grade.reason or text[: last.start()])
    last_line = _BARE.fullmatch(lines[-1]) if lines and len(lines[-1]) <= MAX_LINE else None
    if last_line is not None and (grade := scale.read(last_line["boxed"] or last_line["share"])) is not None:
        yield lines[-1], replace(grade, reason=" ".join(lines[:-1]))
    result = _RESULT.search(text, max(0, len(text) - MAX_LINE))
    if result is not None and (grade := scale.read(result["said"])) is not None:
        yield result[0], replace(grade, reason=text[: result.start()])


def _of_line(line: str, scale: GradeScale) -> Grade | None:
    match = _LINE.match(line) if len(line) <= MAX_LINE else None
    return scale.read(match["said"]) if match is not None else None


def json_fields(text: str) -> dict[str, Any]:
    """The fields of a JSON object, their names in lower case with underscores; none where the text is no object."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    fields = value if isinstance(value, dict) else {}
    return {re.sub(r"[\s-]+", "_", name.casefold()): field for name, field in fields.items()}


def _of_object(text: str, scale: GradeScale) -> Grade | None:
    """The grade in a JSON object, as judges with `response_format` write it."""
    fields = json_fields(text)
    grade = scale.read(str(next((fields[key] for key in _GRADES if key in fields), "")))
    reasons = next((fields[key] for key in _REASONS if key in fields), "")
    return None if grade is None else replace(grade, reason=str(reasons) or grade.reason)


def plain_lines(text: str) -> Iterator[str]:
    """Lines outside fences and block quotes."""
    is_fenced = False
    for line in text.splitlines():
        if _FENCE.match(line):
            is_fenced = not is_fenced
        elif not is_fenced and line.strip() and not line.lstrip().startswith(">"):
            yield line


def last_fence(text: str) -> tuple[str, str]:
    """The text before and inside a fence that ends the text, closed or not; empty where there is none."""
    lines = text.splitlines()
    marks = [place for place, line in enumerate(lines) if _FENCE.match(line)]
    is_open = len(marks) % 2 == 1
    if not marks or not (is_open or marks[-1] == len(lines) - 1):
        return "", ""
    start, end = (marks[-1], len(lines)) if is_open else (marks[-2], marks[-1])
    return "\n".join(lines[:start]), "\n".join(lines[start + 1 : end])
