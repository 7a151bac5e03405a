"""Extracts and compares final answers of worked solutions; parses text, never runs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any
from unicodedata import category, normalize

import re2

from distill.text.tokens import normalise
from distill.text.words import phrase_pattern

_ANNOUNCED = re.compile(
    r"(?:####|\b(?:final answer|answer|result|solution)\b\s*(?:is|are|[:=])\s*[:=]?)\s*([^\n]+)", re.IGNORECASE
)
_NUMBER = re.compile(
    r"(?:(?<![\d.])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3}){1,10}|\d{1,30})(?:(?:\.\d{1,30})?(?:[eE][-+]?\d{1,3})?|/\d{1,30})|(?<!\d)\.\d{1,30})"
    r"(?![\d/])"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}")
_EDGES = " \t\n*_`$,;:!?'\"\u2018\u2019\u201c\u201d()[]"
_POWER = re.compile(r"(?<=[a-z])\^\{?-?\d\}?")
"""The power of a unit: "cm^2"."""
_ASIDE = re.compile(r"(?<=\S)[ \t]*\([^()\n]*\)?[ \t]*$")
"""A remark behind a final answer: "7 (because 3 + 4 = 7)"."""
UNIT_WORDS = 4
"""Most words of a number with its unit; a longer text counts as a sentence."""
LONGEST_LOOKED_AT = 20_000
"""Characters examined, from the end of an answer."""


def final_answer(text: str) -> str:
    r"""The final answer of a worked solution: the last `\boxed{…}`, else the last announcement ("#### 7", "The answer
    is 7"), else the last line that is not blank. Empty for a blank text.
    """
    text = text[-LONGEST_LOOKED_AT:]
    if (box := _box(text)) is not None:
        return _plain(box)
    if announcements := _ANNOUNCED.findall(text):
        return _plain(announcements[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    return _plain(lines[-1]) if lines else ""


def _box(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`, braces nested or not; None without one, and where it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at]
    return None


def _plain(text: str) -> str:
    plain = _TEXT.sub(r"\1", _FRACTION.sub(r"\1/\2", text))
    return " ".join(plain.split()).strip(_EDGES).rstrip("." + _EDGES)


def number(text: str) -> Fraction | None:
    """The last number of a text: `1,234.5`, `-3/4`, `7`. `None` without one, and for a fraction over 0."""
    numbers = _NUMBER.findall(text[-LONGEST_LOOKED_AT:])
    if not numbers:
        return None
    digits = numbers[-1].replace(",", "").replace("\u2212", "-").replace(" ", "")
    try:
        return Fraction(digits)
    except ZeroDivisionError:
        return None


def same_number(text: str, reference: str, tolerance: float = 0.0) -> bool:
    """Whether the final answer's number is within `tolerance` of the reference's; at 0, 0.5 equals 1/2 alone."""
    expected = number(reference)
    value = number(_without_aside(final_answer(text)))
    value = value if value is not None else number(text)
    return expected is not None and value is not None and abs(value - expected) <= Fraction(str(tolerance))


def _without_aside(final: str) -> str:
    """The final answer without the power of its unit and without a bracketed remark."""
    return _ASIDE.sub("", _POWER.sub("", final))


def vote(text: str) -> str:
    """The key for majority votes: the value of a short final answer with one number, else its case-folded text.

    For an equation, the last side counts.
    """
    final = _plain(_without_aside(final_answer(text)).rpartition("=")[2])
    value = number(final)
    is_number = value is not None and len(final.split()) <= UNIT_WORDS and len(_NUMBER.findall(final)) == 1
    return str(value) if is_number else final.casefold()


LONGEST_PATTERN = 200
"""Longest regular expression in a task, in characters."""
MOST_BYTES = 1 << 18
"""Memory limit of a compiled pattern; the worst one takes a fifth of a second on 10,000 characters."""


def pattern_fault(pattern: str) -> str | None:
    """Why a pattern is refused; `None` for a valid one."""
    if len(pattern) > LONGEST_PATTERN:
        return f"is a pattern of {len(pattern)} characters, at most {LONGEST_PATTERN} are taken"
    try:
        _compile(pattern)
    except re2.error as error:
        info = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error
        return f"is no regular expression of RE2 ({info}); it has no look-arounds and no back-references"
    return None


@cache
def _options() -> Any:
    options = re2.Options()
    options.max_mem = MOST_BYTES
    options.log_errors = False
    return options


def _compile(pattern: str) -> Any:
    """RE2's time is linear in the text for any pattern. Raises `re2.error`."""
    return re2.compile(_utf8(pattern), _options())


def _utf8(text: str) -> bytes:
    """Bytes, because RE2 rejects lone surrogates."""
    return text.encode(errors="replace")


def matches(text: str, pattern: str) -> bool:
    """Whether a valid pattern of RE2 is found in the last `LONGEST_LOOKED_AT` characters."""
    return _compile(pattern).search(_utf8(text[-LONGEST_LOOKED_AT:])) is not None


def same_text(text: str, reference: str) -> bool:
    """Whether the final answers are the same but for case, white space and the punctuation around them."""
    return normalise(final_answer(text)) == normalise(final_answer(reference))


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def same_words(text: str, reference: str) -> bool:
    """Whether the final answers are the same but for case, punctuation, articles and white space, as in SQuAD."""
    return _bare_words(final_answer(text)) == _bare_words(final_answer(reference))


def _bare_words(text: str) -> str:
    letters = "".join(" " if category(one)[0] == "P" else one for one in normalize("NFKC", text).casefold())
    return " ".join(_ARTICLES.sub(" ", letters).split())


def label_of(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer gives: its final answer, else the only one that it mentions; `None` without one.

    Case does not count, and `billing_issue` may be written `billing issue`. Where one label contains another, the
    longer one is mentioned alone.
    """
    by_key = {label_key(label): label for label in labels}
    text = text[-LONGEST_LOOKED_AT:]
    if (given := by_key.get(label_key(final_answer(text)))) is not None:
        return given
    mentioned = {label_key(match[0]) for match in _mention(tuple(by_key)).finditer(_spaced(text))}
    return by_key.get(mentioned.pop()) if len(mentioned) == 1 else None


def label_key(label: str) -> str:
    """The form by which labels are compared."""
    return normalise(_plain(_spaced(label)))


def _spaced(text: str) -> str:
    return text.replace("_", " ").replace("-", " ")


@lru_cache(maxsize=16)
def _mention(keys: tuple[str, ...]) -> re.Pattern[str]:
    return phrase_pattern(keys)
