"""Drops or labels sessions that contain a listed word or match a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable
from re import _parser  # type: ignore[attr-defined]  # the only reader of a pattern's structure
from typing import Annotated, Any, Literal

import re2
from pydantic import Field, model_validator

from distill import recipe
from distill.curate.filters import Compared, both_ends, texts_of
from distill.text.words import phrase_pattern
from distill.types import Session, Verdict

MOST_BACKTRACKED = 20_000
"""Characters of a text that are searched by `re`, in up to 10 s; a longer one is searched by RE2, in linear time."""
MAX_BACKTRACKS = 10_000
"""Most ways in which the bounded repeats of a pattern may match at one position."""

Short = Annotated[str, Field(min_length=1, max_length=200)]

_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


class Keyword:
    """Plain words of any language, or regular expressions of the recipe's author.

    Self-Instruct and Alpaca drop tasks by such a list (image, graph, file, plot …: what a text model cannot do).
    Patterns whose time could grow faster than the square of a text's length are refused when the recipe is read. Texts
    of over `MOST_BACKTRACKED` characters are searched by RE2, to which only ASCII has letters, digits, white space and
    word boundaries; for a pattern that RE2 does not know, such as a look-ahead, only both ends of a text are searched.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: keyword`."""

        words: Annotated[tuple[Short, ...], Field(max_length=10_000)] = ()
        """Words or phrases, found as whole words, or anywhere in scripts without spaces; Korean, Arabic, Hebrew and
        Bengali particles may adjoin. White space in them matches any white space."""
        patterns: Annotated[tuple[Short, ...], Field(max_length=100)] = ()
        """Regular expressions, searched anywhere in a text."""
        on: Compared = "both"
        """`prompt` (every user turn), `answer`, or `both`."""
        ignore_case: bool = True
        """Whether words and patterns match in either case."""
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
        self._words = phrase_pattern(options.words, ignore_case=options.ignore_case) if options.words else None
        self._patterns = [(re.compile(each, case), _linear(each, options.ignore_case)) for each in options.patterns]

    def __reduce__(self) -> tuple[type[Keyword], tuple[Keyword.Options]]:
        """Pickles the options only: RE2's patterns cannot be pickled."""
        return type(self), (self.options,)

    def measure(self, session: Session) -> str | None:
        """The first match, as written in the text; `None` where there is none."""
        texts = texts_of(session, self.options.on)
        return next((match[:200] for text in texts if (match := self._match(text)) is not None), None)

    def _match(self, text: str) -> str | None:
        if self._words is not None and (match := self._words.search(text)) is not None:
            return match.group()
        for pattern, linear in self._patterns:
            if len(text) <= MOST_BACKTRACKED or linear is None:
                if (match := pattern.search(both_ends(text, MOST_BACKTRACKED))) is not None:
                    return match.group()
            elif (encoded := linear.search(text.encode(errors="replace"))) is not None:
                return str(encoded.group(), errors="replace")
        return None

    def decide(self, value: str | None) -> Verdict:
        """Drop or label a session with a match."""
        keep = value is None or not self.options.drop
        return Verdict(rule="keyword", keep=keep, reason="ok" if value is None else "keyword", value=value)


def _linear(pattern: str, ignore_case: bool) -> Any:
    """The pattern compiled by RE2, for UTF-8; `None` where RE2 does not know its syntax."""
    options = re2.Options()
    options.case_sensitive, options.log_errors = not ignore_case, False
    try:
        return re2.compile(pattern.encode(errors="replace"), options)
    except re2.error:
        return None


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
