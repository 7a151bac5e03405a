"""Programmatic checks of instructions, after IFEval (Zhou et al., 2023, arXiv 2311.07911).

A check is a mapping with a `kind` and the parameters of that kind. Each depends on the answer alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

Check: TypeAlias = Mapping[str, Any]

_BULLET = re.compile(r"^[^\S\n]*[-*•]\s+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[^\S\n]*(\d{1,3})[.)]\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_FENCE = re.compile(r"^```([\w+-]*)[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_SENTENCE_END = re.compile(
    r"(?=[.!?])(?<!\b[A-Z])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\bSt)[.!?]{1,8}(?=\s|$|[\"'”’)\]])"
)
_ROW = re.compile(r"^[^\S\n]*\|(.+)\|\s*$", re.MULTILINE)


def _words(text: str) -> list[str]:
    """Words between white space that have a letter or a digit; a lone dash or bullet is no word."""
    return [word for word in text.split() if any(char.isalnum() for char in word)]


def _sentences(text: str) -> int:
    """Number of sentences, the last one with or without its mark; initials and common titles end none."""
    ends = len(_SENTENCE_END.findall(text))
    tail = _SENTENCE_END.split(text)[-1] if ends else text
    return ends + bool(re.search(r"\w", tail))


def _paragraphs(text: str) -> int:
    return sum(1 for part in re.split(r"\n[ \t]*\n", text) if part.strip())


def _times(text: str, word: str) -> int:
    """Occurrences of a whole word or phrase, ignoring case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _json(text: str) -> Any:
    """The whole text parsed as JSON, bare or in a fenced block; None where it is no JSON."""
    fence = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", text, re.DOTALL | re.IGNORECASE)
    try:
        return json.loads(fence[1] if fence else text)
    except (ValueError, RecursionError):
        return None


def _has_keys(text: str, keys: set[str]) -> bool:
    value = _json(text)
    return isinstance(value, dict) and keys == set(value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _letters(text: str) -> list[str]:
    return [char for char in text if char.isalpha() and char.lower() != char.upper()]


def _table(text: str, columns: int, rows: int) -> bool:
    """Whether the text has one Markdown table of this size; head and rule are not counted as rows."""
    cells = [[cell.strip() for cell in row.split("|")] for row in _ROW.findall(text)]
    if len(cells) < 2 or not all(re.fullmatch(r":?-+:?", cell) for cell in cells[1]):
        return False
    return len(cells) - 2 == rows and all(len(row) == columns for row in cells)


def _sections(text: str, name: str, count: int) -> bool:
    """Whether lines begin with the name and 1, 2, … to `count`, in that order, each once."""
    numbers = re.findall(rf"^(?:[#*]|[^\S\n])*{re.escape(name)}\s+(\d+)\b", text, re.MULTILINE | re.IGNORECASE)
    return [int(number) for number in numbers] == list(range(1, count + 1))


def _spells(text: str, word: str) -> bool:
    """Whether the first letters of the lines spell the word."""
    firsts = [next((char for char in line if char.isalpha()), "") for line in _lines(text)]
    return "".join(firsts).casefold() == word.casefold()


def _parts(text: str, mark: str, count: int) -> bool:
    """Whether lines that hold only the mark split the text into `count` pieces, none of them empty."""
    pieces = re.split(rf"^[ \t]*{re.escape(mark)}[ \t]*$", text, flags=re.MULTILINE)
    return len(pieces) == count and all(piece.strip() for piece in pieces)


KINDS: Mapping[str, Callable[[str, Check], bool]] = {
    "words_at_least": lambda text, check: len(_words(text)) >= check["count"],
    "words_at_most": lambda text, check: 0 < len(_words(text)) <= check["count"],
    "words_between": lambda text, check: len(_words(text)) in range(check["least"], check["most"] + 1),
    "sentences": lambda text, check: _sentences(text) == check["count"],
    "paragraphs": lambda text, check: _paragraphs(text) == check["count"],
    "bullets": lambda text, check: len(_BULLET.findall(text)) == check["count"],
    "numbered": lambda text, check: _NUMBERED.findall(text) == [str(one + 1) for one in range(check["count"])],
    "includes": lambda text, check: all(_times(text, word) for word in check["words"]),
    "excludes": lambda text, check: bool(text.strip()) and not any(_times(text, word) for word in check["words"]),
    "word_times": lambda text, check: _times(text, check["word"]) == check["count"],
    "starts_with": lambda text, check: text.lstrip().startswith(check["text"]),
    "ends_with": lambda text, check: text.rstrip().endswith(check["text"]),
    "json_keys": lambda text, check: _has_keys(text, set(check["keys"])),
    "lowercase": lambda text, check: bool(letters := _letters(text)) and all(char.islower() for char in letters),
    "uppercase": lambda text, check: bool(letters := _letters(text)) and all(char.isupper() for char in letters),
    "no_commas": lambda text, check: bool(text.strip()) and not re.search("[,，、]", text),
    "heading_first": lambda text, check: bool(re.match(r"\s*# +\S", text)),
    "sections": lambda text, check: _sections(text, check["name"], check["count"]),
    "quoted": lambda text, check: bool(re.fullmatch(r'\s*(?:"[^"]+"|“[^“”]+”)\s*', text)),
    "placeholders": lambda text, check: len(set(_PLACEHOLDER.findall(text))) >= check["count"],
    "postscript": lambda text, check: bool(lines := _lines(text)) and bool(re.match(r"P\.\s?S\.?[\s:]+\S", lines[-1])),
    "one_of": lambda text, check: text.strip().rstrip(".").casefold() in {one.casefold() for one in check["options"]},
    "table": lambda text, check: _table(text, check["columns"], check["rows"]),
    "code_block": lambda text, check: check["language"] in {lang for lang, code in _fences(text) if code.strip()},
    "without_letter": lambda text, check: bool(_letters(text)) and check["letter"].casefold() not in text.casefold(),
    "spells": lambda text, check: _spells(text, check["word"]),
    "bold": lambda text, check: len(_BOLD.findall(text)) == check["count"],
    "question_last": lambda text, check: text.rstrip().endswith("?"),
    "parts": lambda text, check: _parts(text, check["mark"], check["count"]),
    "lines": lambda text, check: len(_lines(text)) == check["count"],
}
"""The check of each kind; an empty answer passes none."""


def _fences(text: str) -> list[tuple[str, str]]:
    return [(language.lower(), code) for language, code in _FENCE.findall(text)]


def problem(check: Any) -> str | None:
    """The fault of a check from a file; `None` for a valid one."""
    kind = check.get("kind") if isinstance(check, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        return f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}"
    try:
        follows("a", check)
    except (AttributeError, KeyError, TypeError) as error:
        return f"`{kind}` lacks or misuses {error}"
    return None


def follows(text: str, check: Check) -> bool:
    """Whether the answer follows one instruction to the letter. Raises `KeyError` for what a check lacks."""
    return bool(text.strip()) and KINDS[check["kind"]](text, check)


def follows_loosely(text: str, check: Check) -> bool:
    """Whether any of eight forms follows it: without the first line, the last or both, each also without asterisks.

    So "Sure, here it is:" and bold type cost nothing (IFEval's loose criterion).
    """
    return any(follows(form, check) for form in _forms(text))


def _forms(text: str) -> Iterator[str]:
    lines = text.split("\n")
    for part in (lines, lines[1:], lines[:-1], lines[1:-1]):
        whole = "\n".join(part).strip()
        yield whole
        yield whole.replace("*", "")
