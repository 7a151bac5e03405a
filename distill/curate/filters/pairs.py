"""Keeps usable preference pairs, and makes pairs of best_of's sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from distill import recipe
from distill.curate.filters import MOST_COMPARED, both_ends
from distill.formats.preferences import pair_of
from distill.text.tokens import rouge_l
from distill.text.words import comparable, word_count
from distill.types import Pair, Session, Verdict

NO_PAIR = "no_pair"
"""Reason for a session with one answer; `meta.undecided` holds a better one."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """How the two answers of a pair differ."""

    fault: str = ""
    """Why it is no pair: `no_pair`, `different_roles`, `same_answers` (but for white space), or why none was chosen."""
    margin: float | None = None
    """The chosen answer's score less the rejected one's; `None` without both."""
    length_ratio: float = 1.0
    """Words of the longer answer divided by those of the shorter one."""
    rouge_l: float = 0.0


class Pairs:
    """Drops sessions with one answer, and pairs that teach nothing, or length alone.

    A session of best_of becomes the pair of its answer and the worst sample that scored lower; name this rule before
    `pii`, which masks rejected answers too. Other rules on answers look at the chosen one. Where chosen answers
    are longer than rejected ones, a student learns to write more: Park et al., 2024, arXiv 2403.19159.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: pairs`."""

        min_margin: Annotated[float, Field(ge=0)] | None = None
        """Least difference of the answers' scores, in their own unit, where both have one (best_of, imported sets)."""
        max_length_ratio: Annotated[float, Field(ge=1)] = 2.0
        """Greatest ratio of the answers' lengths in words, the longer to the shorter; 1000 is as good as no bound."""
        rouge_l: Annotated[float, Field(gt=0, le=1)] = 0.9
        """Greatest ROUGE-L F-measure of the two answers; equal ones, but for white space, are dropped at 1 too."""

    scope: Literal["row"] = "row"

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, session: Session) -> Contrast:
        """The contrast of the two answers."""
        pair = pair_of(session)
        if pair is None:
            return Contrast(str(session.meta.get("undecided") or NO_PAIR))
        return contrast(pair)

    def decide(self, value: Contrast) -> Verdict:
        """A verdict names the first bound that is violated, else the margin."""
        if value.fault:
            return Verdict(rule="pairs", keep=False, reason=value.fault)
        least, margin = self.options.min_margin, value.margin
        if least is not None and margin is not None and margin < least:
            return _outside("small_margin", margin, least)
        if value.length_ratio > self.options.max_length_ratio:
            return _outside("unlike_lengths", value.length_ratio, self.options.max_length_ratio)
        if value.rouge_l > self.options.rouge_l:
            return _outside("nearly_same", value.rouge_l, self.options.rouge_l)
        return Verdict(rule="pairs", keep=True, reason="ok", value=margin)

    def mend(self, session: Session, value: Contrast) -> Session:
        """The pair that a session of best_of holds."""
        return pair_of(session) or session


def _outside(reason: str, value: float, bound: float) -> Verdict:
    return Verdict(rule="pairs", keep=False, reason=reason, value=value, threshold=bound)


def contrast(pair: Pair) -> Contrast:
    """How its answers differ; compared by their words, and where these are the same by their characters."""
    chosen, rejected = pair.messages[-1], pair.rejected
    if chosen.role != rejected.role:
        return Contrast("different_roles")
    if chosen.content.split() == rejected.content.split():
        return Contrast("same_answers")
    texts = [both_ends(one.content, MOST_COMPARED) for one in (chosen, rejected)]
    shorter, longer = sorted(max(1, word_count(one.content)) for one in (chosen, rejected))
    words = [comparable(text) for text in texts]
    likeness = rouge_l(*(words if words[0] != words[1] else ["".join(text.split()) for text in texts]))
    return Contrast(margin=_margin(pair), length_ratio=round(longer / shorter, 3), rouge_l=round(likeness, 3))


def _margin(pair: Pair) -> float | None:
    about = pair.meta.get("rejected")
    scores = pair.meta.get("score"), about.get("score") if isinstance(about, Mapping) else None
    chosen, rejected = (score if isinstance(score, int | float) else None for score in scores)
    return None if chosen is None or rejected is None else float(chosen - rejected)
