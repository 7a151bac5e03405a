"""Whether an answer is right, by the prompt's reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from distill import recipe
from distill.compare.label_scores import label_scores
from distill.compare.metrics import Measure, Sample, Scores
from distill.errors import RecipeError
from distill.text import references
from distill.text.references import Reference


class Accuracy:
    """Answers held against the `reference` of their prompts."""

    class Options(recipe.CheckOptions):
        """Options of `metric: accuracy`."""

    scope: Literal["text"] = "text"
    measures: tuple[Measure, ...] = (
        Measure(
            name="accuracy",
            title="Accuracy",
            unit="share",
            better="higher",
            explanation="Share of prompts whose answer agrees with the reference. Prompts without a reference are left "
            "out.",
            correctness=True,
        ),
        Measure(
            name="field_f1",
            title="Field F1",
            unit="share",
            better="higher",
            explanation="F1 of the fields of an answer in JSON against those of the reference, each with its place and "
            "its value; an answer that is no JSON has 0.",
        ),
    )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self._check = self.options.default_check

    def look(self, solutions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Notes on prompts without a usable reference, before any model is asked.

        `solutions`: each prompt's `reference` and `checks`, if any. Raises `RecipeError` where no reference is usable.
        """
        faults = [references.fault(one, self._check) if references.raw(one) is not None else "" for one in solutions]
        unusable = [fault for fault in faults if fault]
        without = faults.count("")
        if solutions and len(unusable) + without == len(solutions):
            why = unusable[0] if unusable else "rows and tasks carry the right answer as `reference`"
            raise RecipeError(f"accuracy: none of {len(solutions)} prompts has a reference to check: {why}")
        if unusable:
            yield f"accuracy: {len(unusable)} of {len(solutions)} prompts are left out, as {unusable[0]}"
        if without:
            yield f"accuracy: {without} of {len(solutions)} prompts have no reference, and are left out"

    def prepare(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Take the references as the labels to choose from, where none are given; leave out what needs JSON."""
        if not any(self._is_json(sample) for sample in samples):
            self.measures = tuple(one for one in self.measures if one.name != "field_f1")
        if self._check.kind == "choice" and not self._check.labels:
            given = {references.as_text(references.raw(one.solution)) for one in samples if one.solution}
            self._check = replace(self._check, labels=tuple(sorted(given)))

    def _reference(self, sample: Sample) -> Reference | None:
        """The sample's reference, if it can be checked."""
        if references.fault(sample.solution, self._check) is not None:
            return None
        return references.read(sample.solution, self._check)

    def _is_json(self, sample: Sample) -> bool:
        reference = self._reference(sample)
        return reference is not None and reference.field_f1("") is not None

    def score(self, sample: Sample) -> Scores:
        """`accuracy`, 0 or 1, and `field_f1` where the reference is JSON; empty without a reference."""
        if (reference := self._reference(sample)) is None:
            return {}
        fields = reference.field_f1(sample.answer.text)
        return {
            "accuracy": float(reference.passes(sample.answer.text)),
            **({"field_f1": fields} if fields is not None else {}),
        }

    def tables(self, samples: Sequence[Sample], seed: int) -> Mapping[str, Any]:
        """`labels`: the confusion of labels by model, with precision, recall and F1; empty where none are asked for."""
        labelled: dict[str, dict[int, tuple[str, str | None]]] = {}
        for sample in samples:
            reference = self._reference(sample)
            if reference is not None and (pair := reference.labelled(sample.answer.text)) is not None:
                labelled.setdefault(sample.model, {})[sample.prompt] = pair
        return {"labels": label_scores(labelled, self._check.labels, seed=seed)} if labelled else {}
