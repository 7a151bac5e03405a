"""Near-duplicates by cosine of sentence embeddings, from a model in a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distill import recipe
from distill.curate.filters import Compared, compared_text
from distill.models.embeddings import embedded
from distill.types import Session, Verdict

BLOCK = 256
"""Rows compared with all kept rows at once: 100 MB of cosines for 100,000 rows."""


class SemanticDuplicate:
    """Keeps the first of semantically similar sessions: greedy in task order, as `near_duplicate` is.

    A text's embedding is the mean of a model's last hidden states (or that of the first token, where the model's folder
    says so), scaled to length 1. The model is read from a local folder of safetensors; nothing is downloaded and no
    foreign code runs.
    """

    class Options(recipe.BaseOptions):
        """Options of `filter: semantic_duplicate`."""

        path_fields: ClassVar[tuple[str, ...]] = ("model",)
        model: Annotated[str, Field(min_length=1)]
        """A local folder with config.json, a tokenizer and safetensors, such as all-MiniLM-L6-v2."""
        cosine: Annotated[float, Field(gt=0, le=1)] = 0.9
        """Least cosine of duplicates (semhash's default; Magpie takes 0.975: L2 distance 0.05, squared)."""
        max_tokens: Annotated[int, Field(ge=1)] = 256
        """Tokens of each text that are read (all-MiniLM-L6-v2's own limit)."""
        on: Compared = "prompt"

    scope: Literal["set"] = "set"

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """A dropped session's neighbour is the most similar kept one. Raises `ModelError`, `MissingPackage`."""
        texts = [compared_text(session, self.options.on) for session in sessions]
        if not texts:
            return []
        rows = embedded(texts, Path(self.options.model), self.options.max_tokens, key="semantic_duplicate.model")
        return [self._verdict(cosine, sessions[near].id) for cosine, near in greedy(rows, self.options.cosine)]

    def _verdict(self, cosine: float, near: str) -> Verdict:
        keep = cosine < self.options.cosine
        return Verdict(
            rule="semantic_duplicate",
            keep=keep,
            reason="ok" if keep else "semantic_duplicate",
            value=round(cosine, 4),
            threshold=self.options.cosine,
            neighbour=None if keep else near,
        )


def greedy(rows: NDArray[np.float32], threshold: float) -> list[tuple[float, int]]:
    """For each of (rows, dimensions) the greatest cosine with an earlier kept row (0 for the first), and its place."""
    neighbours: list[tuple[float, int]] = []
    kept: list[int] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        earlier = np.array(kept, dtype=np.int64)
        cosines, among = block @ rows[earlier].T, block @ block.T
        for place in range(len(block)):
            new = kept[len(earlier) :]
            row = np.concatenate([cosines[place], among[place, [other - start for other in new]]])
            best = int(row.argmax()) if len(row) else -1
            cosine = float(row[best]) if len(row) else 0.0
            neighbours.append((cosine, kept[best] if len(row) else start + place))
            if cosine < threshold:
                kept.append(start + place)
    return neighbours
