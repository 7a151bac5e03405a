"""Table of the stages' modules; `distill.run.layout.STAGES` has their files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from distill.collect import stage as collect
from distill.compare import stage as compare
from distill.curate import stage as curate
from distill.expand import stage as expand
from distill.report import stage as report
from distill.run.context import Context
from distill.run.record import StageRecord
from distill.train import stage as train


class Stage(Protocol):
    """The module of a stage."""

    REVISION: int
    """Raise it with any change of what the stage writes for the same inputs and options."""

    def run(self, context: Context, record: StageRecord) -> Mapping[str, Any]:
        """Write the stage's outputs; returns counts."""

    def options(self, context: Context) -> dict[str, Any]:
        """Options of the recipe that determine the stage's outputs, by key, without defaults."""


PIPELINE: Mapping[str, Stage] = {
    "expand": expand,
    "collect": collect,
    "curate": curate,
    "train": train,
    "compare": compare,
    "report": report,
}
