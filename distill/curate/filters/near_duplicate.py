"""Near-duplicates by ROUGE-L to an earlier session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from distill import recipe
from distill.curate.filters import MOST_COMPARED, Compared, both_ends, compared_text
from distill.text.rouge_index import NoveltyIndex
from distill.types import Session, Verdict


class NearDuplicate:
    """Keeps the first of similar sessions: greedy in task order, each compared with the earlier ones that are kept.

    Texts are compared by the words of every script, and by their characters where their words are the same.

    Questions within one long frame ("… Try to explain your answer. Your explanation should …") are similar because of
    the frame: `minhash` distinguishes them, but misses short texts with one word changed.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: near_duplicate`."""

        rouge_l: Annotated[float, Field(ge=0, le=1)] = 0.7
        """Greatest ROUGE-L F-measure with any earlier kept session (Self-Instruct, section 2.2)."""
        on: Compared = "prompt"

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A dropped session's neighbour is the most similar kept one."""
        index = NoveltyIndex(self.options.rouge_l)
        return [self._decide(session, index) for session in sessions]

    def _decide(self, session: Session, index: NoveltyIndex) -> Verdict:
        text = both_ends(compared_text(session, self.options.on), MOST_COMPARED)
        near = index.near(text)
        if near is None:
            index.add(session.id, text)
            return Verdict(rule="near_duplicate", keep=True, reason="ok", threshold=self.options.rouge_l)
        return Verdict(
            rule="near_duplicate",
            keep=False,
            reason="near_duplicate",
            value=near.rouge_l,
            threshold=self.options.rouge_l,
            neighbour=near.id,
        )
