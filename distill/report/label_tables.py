"""The report's section on labels: averages and figures per label of every model, and what was taken for what."""

from __future__ import annotations

from typing import Any

from distill.run.scores import LabelScores, LabelTable
from distill.types import MODELS

MOST_LABELS = 20
"""Labels up to which the whole confusion matrix is shown; of more, the most frequent confusions alone."""
CONFUSIONS = 20
AVERAGES = ("macro_f1", "macro_precision", "macro_recall", "micro_f1")
SHADES = 4
NO_LABEL = "none of them"


def labels(scores: LabelScores | None) -> dict[str, Any] | None:
    """The section's values; None where no labels were asked for."""
    if scores is None or not scores.by:
        return None
    models = [model for model in MODELS if model in scores.by]
    return {
        "models": models,
        "averages": [(name.replace("_", " ").capitalize().replace("f1", "F1"), name) for name in AVERAGES],
        "tables": {model: scores.by[model] for model in models},
        "columns": [*scores.labels, NO_LABEL],
        "matrices": {model: _shaded(scores.by[model]) for model in models} if len(scores.labels) <= MOST_LABELS else {},
        "confusions": {model: _confusions(scores.labels, scores.by[model]) for model in models},
    }


def _shaded(table: LabelTable) -> list[tuple[str, list[tuple[int, int]]]]:
    """Each right label with its cells: the count, and a shade from 0 to `SHADES` by the share of the row."""
    return [
        (one.label, [(count, -(-SHADES * count // max(sum(row), 1))) for count in row])
        for one, row in zip(table.per_label, table.matrix, strict=False)
    ]


def _confusions(names: tuple[str, ...], table: LabelTable) -> list[tuple[int, str, str]]:
    """The most frequent wrong answers: their number, the right label and the given one."""
    cells = [
        (count, right, given)
        for right, row in zip(names, table.matrix, strict=False)
        for given, count in zip((*names, NO_LABEL), row, strict=False)
        if count and given != right
    ]
    return sorted(cells, key=lambda cell: (-cell[0], cell[1:]))[:CONFUSIONS]
