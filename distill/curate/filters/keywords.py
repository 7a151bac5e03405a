"""Drops or labels sessions that contain a listed word or match a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from re import _parser  # type: ignore[attr-defined]  # the only reader of a pattern's structure
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import recipe
from distill.curate.filters import Compared, texts_of
from distill.types import Session, Verdict

MAX_BACKTRACKS = 10_000
"""Most ways in which the bounded repeats of a pattern may match at one position."""

Short = Annotated[str, Field(min_length=1, max_length=200)]

_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


class Keyword:
    """Plain words of any language, or regular expressions of the recipe's author.

    Self-Instruct and Alpaca drop tasks by such a list (image, graph, file, plot …: what a text model cannot do).
    Patterns whose time could grow faster than the square of a text's length are refused when the recipe is read.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: keyword`."""

        words: Annotated[tuple[Short, ...], Field(max_length=10_000)] = ()
        """Words or phrases, matched as whole words; white space in them matches any white space."""
        patterns: Annotated[tuple[Short, ...], Field(max_length=100)] = ()
        """Regular expressions, searched anywhere in a text."""
        on: Compared = "both"
        """`prompt` (every user turn), `answer`, or `both`."""
        ignore_case: bool = True
        drop: bool = True
        """Drop sessions with a match; otherwise they are labelled."""

        @model_validator(mode="after")
        def _some_and_safe(self) -> Keyword.Options:
            if not self.words and not self.patterns:
                raise ValueError("keyword: give `words` or `patterns`")
            for pattern in self.patterns:
                if fault := slow_or_wrong(pattern):
                    raise ValueError(f"patterns: {pattern!r}: {fault}")
            return self

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options
        case = re.IGNORECASE if options.ignore_case else 0
        self._patterns = [re.compile(pattern, case) for pattern in (*_word_pattern(options.words), *options.patterns)]

    def measure(self, session: Session) -> str | None:
        """The first match, as written in the text; `None` where there is none."""
        for text in texts_of(session, self.options.on):
            for pattern in self._patterns:
                if match := pattern.search(text):
                    return match.group()[:200]
        return None

    def decide(self, value: str | None) -> Verdict:
        """Drop or label a session with a match."""
        keep = value is None or not self.options.drop
        return Verdict(rule="keyword", keep=keep, reason="ok" if value is None else "keyword", value=value)


def _word_pattern(words: Sequence[str]) -> Iterable[str]:
    """One pattern for all words, longest first; a word is bounded where no letter or digit adjoins."""
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    alternatives = [r"\s+".join(map(re.escape, word.split())) for word in longest_first if word.strip()]
    return [rf"(?<!\w)(?:{'|'.join(alternatives)})(?!\w)"] if alternatives else []


def slow_or_wrong(pattern: str) -> str | None:
    """Why a pattern is refused, or `None`.

    Refused are back-references, repeats of an expression that repeats or branches itself (exponential), a second
    unbounded repeat (cubic), and bounded repeats with more than `MAX_BACKTRACKS` combinations.
    """
    try:
        nodes = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"no regular expression ({error})"
    unbounded, ways = 0, 1
    for name, argument in _nodes(nodes):
        if name.startswith("GROUPREF"):
            return "refers back to a group, which may take for ever; write it out"
        if name in _REPEATS:
            least, most, body = argument
            if most > 1 and any(inner in (*_REPEATS, "BRANCH") for inner, _ in _nodes(body)):
                return "repeats what itself repeats or branches, which may take for ever; repeat single characters"
            unbounded += most >= 1_000
            ways *= 1 if most >= 1_000 else most - least + 1
    if unbounded > 1 or ways > MAX_BACKTRACKS:
        return "repeats too often, which may take for ever; use one + or *, and bounds such as {1,20} besides"
    return None


def _nodes(pattern: Any) -> Iterable[tuple[str, Any]]:
    """Name and argument of every node within a parsed pattern or a node's argument, outer ones first."""
    if isinstance(pattern, _parser.SubPattern):
        for name, argument in pattern:
            yield str(name), argument
            yield from _nodes(argument)
    elif isinstance(pattern, (tuple, list)):
        for each in pattern:
            yield from _nodes(each)
