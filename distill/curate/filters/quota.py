"""Limits the number of sessions per source, topic, kind or strategy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill import recipe
from distill.types import Session, Verdict


class Quota:
    """The first rows of each group, in task order, up to its quota."""

    class Options(recipe.BaseOptions):
        """Options of `filter: quota`."""

        by: Annotated[str, Field(min_length=1)] = "source"
        """The key of `meta` whose value makes a group: `source`, `topic`, `kind`, `strategy`, `teacher` …"""
        most: Annotated[int, Field(ge=1)] | None = None
        """Most rows of a group."""
        share: Annotated[float, Field(gt=0, le=1)] | None = None
        """Most rows of a group, as a share of the rows that reach this rule; never less than one row."""
        missing: Literal["keep", "group"] = "keep"
        """`keep` all rows without the key, or treat them as one `group`."""

        @model_validator(mode="after")
        def _one_bound(self) -> Quota.Options:
            if self.most is None and self.share is None:
                raise ValueError("quota: give `most` (rows) or `share` (of all rows)")
            return self

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A verdict's value is the row's place in its group, from 1."""
        most = self._most(len(sessions))
        count: Counter[str] = Counter()
        return [self._decide(self._group(session), count, most) for session in sessions]

    def _decide(self, group: str | None, count: Counter[str], most: int) -> Verdict:
        if group is None:
            return Verdict(rule="quota", keep=True, reason="ok", threshold=most)
        count[group] += 1
        keep = count[group] <= most
        return Verdict(
            rule="quota", keep=keep, reason="ok" if keep else "over_quota", value=count[group], threshold=most
        )

    def _most(self, rows: int) -> int:
        by_share = rows if self.options.share is None else max(1, int(self.options.share * rows))
        return min(by_share, rows if self.options.most is None else self.options.most)

    def _group(self, session: Session) -> str | None:
        value = session.meta.get(self.options.by)
        if value is None:
            return None if self.options.missing == "keep" else ""
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
