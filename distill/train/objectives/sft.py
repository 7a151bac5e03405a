"""The objective `sft`: the teacher's words, by cross entropy. Others are subclasses that change a part of it."""

from __future__ import annotations

from typing import Any

from distill.recipe import BaseOptions
from distill.train.objectives.cross_entropy import CrossEntropy


class NoOptions(BaseOptions):
    """Options of an objective that has none."""


class Sft(CrossEntropy):
    """Cross entropy on the teacher's answers."""

    Options: type[BaseOptions] = NoOptions

    def deciding(self) -> dict[str, Any]:
        """What decides the weights, by recipe key; empty for `sft`, which is the default."""
        if type(self) is Sft:
            return {}
        return {f"train.objective.{key}": value for key, value in {"kind": self.kind, **dict(self.options)}.items()}
