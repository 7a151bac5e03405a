"""Options of parts that hold answers against references: the strategy best_of, a filter, a metric."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill.recipe.sections import BaseOptions
from distill.text.references import Check, Checking


class CheckOptions(BaseOptions):
    """How an answer is held against its row's `reference`; the row's own `checks` go first. Nothing is executed."""

    check: Checking | None = None
    """`exact` and `numeric` compare final answers, `normalised` without case, articles and punctuation; `choice` looks
    for one of the `labels`, `contains` for the reference, `regex` for its pattern (RE2's syntax); `json` compares
    values. By the type of the reference when left out."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Greatest absolute difference of numbers."""
    labels: tuple[str, ...] = ()
    """The labels to choose from; a reference that is none of them cannot be checked."""

    @property
    def default_check(self) -> Check:
        """The check of rows that have none."""
        return Check(self.check, self.tolerance, self.labels)
