"""Labels repetitive answers, by thresholds for web text, and drops loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from operator import eq
from typing import Annotated, Literal

from pydantic import Field

from distill import recipe
from distill.curate.filters import answers_of, both_ends
from distill.text.tokens import n_grams
from distill.text.words import comparable
from distill.types import Session, Verdict

Share = Annotated[float, Field(ge=0, le=1)]

_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
LOOP_PERIOD, LOOP_WORDS = 40, 20
"""Most words of a loop's period, and fewest words of the whole loop."""
_PARAGRAPHS = re.compile(r"\n\s*\n")


class Repetition:
    """Shares of an answer that are repeats, each in [0, 1]; of several answers, the greatest.

    All thresholds are those of Gopher (Rae et al. 2021, arXiv 2112.11446, Table A1), also the defaults of datatrove's
    GopherRepetitionFilter. Counted as datatrove counts: a line or n-gram is a repeat from its second occurrence on, and
    repeats do not overlap; but here an n-gram that occurs once is never a repeat, and lines without a letter or digit
    (a single bracket, a rule) are ignored. Words that repeat with no others between are a loop, however small their
    share, since a long answer may end in one.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: repetition`: the greatest shares that get no label."""

        duplicate_lines: Share = 0.30
        """Share of lines (Gopher, Table A1)."""
        duplicate_line_chars: Share = 0.20
        """Share of characters in repeated lines (Gopher, Table A1)."""
        duplicate_paragraphs: Share = 0.30
        """Share of paragraphs (Gopher, Table A1)."""
        duplicate_paragraph_chars: Share = 0.20
        """Share of characters in repeated paragraphs (Gopher, Table A1)."""
        top_n_grams: dict[Annotated[int, Field(ge=1, le=20)], Share] = Field(default_factory=_TOP.copy)
        """By n, the share of characters in the n-gram that covers most (Gopher, Table A1)."""
        duplicate_n_grams: dict[Annotated[int, Field(ge=1, le=50)], Share] = Field(default_factory=_DUPLICATE.copy)
        """By n, the share of characters in repeated n-grams (Gopher, Table A1)."""
        min_words: Annotated[int, Field(ge=0)] = 50
        """Shorter answers are not examined: 50 words is the least that Gopher keeps (its section A.1.1)."""
        drop_above: Share = 0.4
        """A share above its threshold labels the session, and drops it if it is also above this; 0 drops all. Measured:
        Gopher's thresholds label 19 of 999 Alpaca answers, all sound (sums, choruses, definitions), with shares up to
        0.33, while the loops of an untrained 13B model begin at 0.41."""
        loop: Annotated[int, Field(ge=2)] = 5
        """Consecutive repetitions of up to 40 words, 20 words or more in all, that are a loop and drop the session
        (measured: 1,913 answers of Alpaca, Self-Instruct, ShareGPT and Vicuna have at most 4 repetitions and 13
        words)."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> list[dict[str, float]]:
        """For each answer its `words`, every share by name, such as `top_2_gram`, and the repetitions in its `loop`."""
        options = self.options
        return [_shares(text, [*options.top_n_grams], [*options.duplicate_n_grams]) for text in answers_of(session)]

    def decide(self, value: Sequence[Mapping[str, float]]) -> Verdict:
        """A verdict names the greatest share above its threshold, else the greatest share."""
        answers = [answer for answer in value if answer["words"] >= self.options.min_words]
        times = int(max((answer["loop"] for answer in answers), default=1))
        if times >= self.options.loop:
            return Verdict(rule="repetition", keep=False, reason="loop", value=times, threshold=self.options.loop)
        shares = [(max((answer[name] for answer in answers), default=0.0), most, name) for name, most in self._bounds()]
        worst = max((share for share in shares if share[0] > share[1]), default=None)
        if worst is None:
            return Verdict(rule="repetition", keep=True, reason="ok", value=max(shares)[0])
        share, threshold, name = worst
        keep = share <= self.options.drop_above
        threshold = threshold if keep else max(threshold, self.options.drop_above)
        return Verdict(rule="repetition", keep=keep, reason=name, value=share, threshold=threshold)

    def _bounds(self) -> list[tuple[str, float]]:
        options = self.options
        plain = ("duplicate_paragraphs", "duplicate_paragraph_chars", "duplicate_lines", "duplicate_line_chars")
        return [
            *((name, getattr(options, name)) for name in plain),
            *((f"top_{n}_gram", share) for n, share in options.top_n_grams.items()),
            *((f"duplicate_{n}_grams", share) for n, share in options.duplicate_n_grams.items()),
        ]


def _shares(text: str, top: Sequence[int], duplicates: Sequence[int]) -> dict[str, float]:
    text = both_ends(text)
    tokens = comparable(text)
    chars = max(1, sum(map(len, tokens)))
    shares: dict[str, float] = {"words": len(tokens)}
    shares["duplicate_lines"], shares["duplicate_line_chars"] = _repeats(text.splitlines())
    shares["duplicate_paragraphs"], shares["duplicate_paragraph_chars"] = _repeats(_PARAGRAPHS.split(text))
    has_repeats = may_loop = True
    for n in sorted({*top, *duplicates}):
        grams = list(n_grams(tokens, n)) if has_repeats else []
        has_repeats = len(set(grams)) < len(grams)  # without a repeated n-gram, no longer one repeats either
        may_loop = has_repeats if n <= LOOP_WORDS // 2 else may_loop
        if n in top:
            shares[f"top_{n}_gram"] = round(_top(grams, n) / chars, 4) if has_repeats else 0.0
        if n in duplicates:
            shares[f"duplicate_{n}_grams"] = round(_repeated_chars(grams, n) / chars, 4) if has_repeats else 0.0
    shares["loop"] = _times_in_a_row(tokens) if may_loop else 1
    return shares


def _repeats(pieces: Sequence[str]) -> tuple[float, float]:
    """Share of pieces that repeat an earlier one, and their share of the characters."""
    lines = [piece for line in pieces if any(map(str.isalnum, piece := line.strip()))]
    distinct = set(lines)
    if len(distinct) == len(lines):
        return 0.0, 0.0
    chars = sum(map(len, lines))
    return round(1 - len(distinct) / len(lines), 4), round((chars - sum(map(len, distinct))) / chars, 4)


def _top(grams: Sequence[tuple[str, ...]], n: int) -> int:
    """Most characters that one n-gram covers, of those that occur at least twice; overlaps are counted once."""
    repeated = {gram for gram, count in Counter(grams).items() if count > 1}
    times: Counter[tuple[str, ...]] = Counter()
    ends: dict[tuple[str, ...], int] = {}
    for place, gram in enumerate(grams):
        if gram in repeated and place >= ends.get(gram, 0):
            times[gram] += 1
            ends[gram] = place + n
    return max((count * sum(map(len, gram)) for gram, count in times.items() if count > 1), default=0)


def _repeated_chars(grams: Sequence[tuple[str, ...]], n: int) -> int:
    """Characters in n-grams from their second occurrence on; overlaps are counted once."""
    earlier: set[tuple[str, ...]] = set()
    covered = place = 0
    while place < len(grams):
        if grams[place] in earlier:
            covered, place = covered + sum(map(len, grams[place])), place + n
        else:
            earlier.add(grams[place])
            place += 1
    return covered


def _times_in_a_row(tokens: Sequence[str]) -> int:
    """The most consecutive repetitions of 1 to `LOOP_PERIOD` tokens, `LOOP_WORDS` tokens at least in all; else 1."""
    most = 1
    for period in range(1, min(LOOP_PERIOD, len(tokens) // 2) + 1):
        again = map(eq, tokens, islice(tokens, period, None))
        longest = max((sum(1 for _ in run) for same, run in groupby(again) if same), default=0)
        if longest + period >= LOOP_WORDS:
            most = max(most, (longest + period) // period)
    return most
