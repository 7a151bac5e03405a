"""Confusion, precision, recall and F1 of labels, by model; macro and micro averages with intervals over prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from distill.compare.stats import interval_of

if TYPE_CHECKING:
    import numpy

    Floats: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float64]]"

Labelled: TypeAlias = Mapping[int, tuple[str, str | None]]
"""By prompt, the right label and the one that the answer gives; `None` for none of them."""


def label_scores(by_model: Mapping[str, Labelled], labels: Sequence[str], *, seed: int) -> dict[str, Any]:
    """The entry `labels` of scores.json.

    Definitions are those of scikit-learn's `precision_recall_fscore_support` over the labels, `zero_division` 0: an
    answer without a label is a miss of its right label and a false alarm of none. The labels are those that occur in a
    reference or in any model's answer, those of `labels` first.
    """
    pairs = [pair for labelled in by_model.values() for pair in labelled.values()]
    occurring = {label for pair in pairs for label in pair if label is not None}
    names = sorted(occurring, key=lambda one: (one not in labels, [*labels, one].index(one), one))
    return {"labels": names, "by": {model: _scores(list(one.values()), names, seed) for model, one in by_model.items()}}


def _scores(pairs: Sequence[tuple[str, str | None]], names: Sequence[str], seed: int) -> dict[str, Any]:
    """One model's confusion matrix (rows: right label; columns: labels, then none) and its figures."""
    import numpy

    counts = Counter(pairs)
    columns = numpy.array(
        [[[right == given == one, given == one, right == one] for one in names] for right, given in pairs],
        numpy.float64,
    ).reshape(len(pairs), -1)
    sums = columns.sum(axis=0, keepdims=True)
    per_label = [part[0].tolist() for part in _per_label(sums)]
    return {
        "n": len(pairs),
        "matrix": [[counts[right, given] for given in (*names, None)] for right in names],
        "per_label": [
            {"label": name, "precision": p, "recall": r, "f1": f, "support": sum(one[0] == name for one in pairs)}
            for name, p, r, f in zip(names, *per_label, strict=True)
        ],
        **{
            f"{kind}_{name}": interval_of(columns, partial(_average, kind=kind, place=place), seed=seed)
            for kind in ("macro", "micro")
            for place, name in enumerate(("precision", "recall", "f1"))
        },
    }


def _per_label(sums: Floats) -> list[Floats]:
    """Precision, recall and F1, each (rows, labels), of sums (rows, 3 × labels): per label both, given and right."""
    both, given, right = (sums[:, place::3] for place in range(3))
    return _figures(both, given, right)


def _figures(both: Floats, given: Floats, right: Floats) -> list[Floats]:
    import numpy

    pairs = ((both, given), (both, right), (2 * both, given + right))
    return [numpy.divide(top, bottom, out=numpy.zeros_like(top), where=bottom > 0) for top, bottom in pairs]


def _average(sums: Floats, *, kind: str, place: int) -> Floats:
    if kind == "macro":
        means: Floats = _per_label(sums)[place].mean(axis=1)
        return means
    both, given, right = (sums[:, part::3].sum(axis=1) for part in range(3))
    return _figures(both, given, right)[place]
