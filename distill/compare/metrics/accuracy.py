"""Whether an answer is right, by the prompt's reference; of several samples, how often one or most are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import recipe
from distill.compare.label_scores import label_scores
from distill.compare.metrics import Measure, Sample, Scores
from distill.compare.sampled import maj_at_k, majority, pass_at_k
from distill.errors import RecipeError
from distill.text import references
from distill.text.references import Reference

ACCURACY = Measure(
    name="accuracy",
    title="Accuracy",
    unit="share",
    better="higher",
    explanation="Share of prompts whose answer agrees with the reference. Prompts without a reference are left out.",
    correctness=True,
)
FIELD_F1 = Measure(
    name="field_f1",
    title="Field F1",
    unit="share",
    better="higher",
    explanation="F1 of the fields of an answer in JSON against those of the reference, each with its place and its "
    "value; an answer that is no JSON has 0.",
)
AGREEMENT = Measure(
    name="agreement",
    title="Agreement with the teacher's majority",
    unit="share",
    better="higher",
    explanation="Share of prompts without a reference whose answer is the most frequent one of the teacher's samples; "
    "it says nothing of whether that is right. Left out: the teacher itself, and prompts on which two answers are "
    "equally frequent.",
    likeness=True,
)


class Accuracy:
    """Answers held against the `reference` of their prompts."""

    class Options(recipe.CheckOptions):
        """Options of `metric: accuracy`."""

        samples: Annotated[int, Field(ge=1, le=64)] = 1
        """Answers of base, student and teacher to each prompt, for `k`; the first one has the accuracy."""
        k: tuple[Annotated[int, Field(ge=1)], ...] = ()
        """Numbers of samples for pass@k, the chance that one of them is right, and above 1 maj@k, that the most
        frequent one is; 1 and `samples` when left out."""

        @model_validator(mode="after")
        def _enough_samples(self) -> Accuracy.Options:
            if self.samples < max(self.k, default=0):
                raise ValueError(f"k {max(self.k)} needs as many samples, found samples {self.samples}")
            return self

    scope: Literal["text"] = "text"
    measures: tuple[Measure, ...] = (ACCURACY, FIELD_F1, AGREEMENT)

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.samples = self.options.samples
        self._sizes = self.options.k or ((1, self.samples) if self.samples > 1 else ())
        self._check = self.options.default_check
        self._majorities: dict[int, str] = {}
        several = [measure for k in self._sizes for measure in _of_samples(k, self.samples)[: 1 if k == 1 else 2]]
        self.measures = (ACCURACY, FIELD_F1, *several, AGREEMENT)

    def look(self, solutions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Notes on prompts without a usable reference, before any model is asked.

        `solutions`: each prompt's `reference` and `checks`, if any. Raises `RecipeError` where no reference is usable,
        and there are no samples for a majority in its place.
        """
        faults = [references.fault(one, self._check) if references.raw(one) is not None else "" for one in solutions]
        unusable = [fault for fault in faults if fault]
        without, count = faults.count(""), len(faults)
        if count and len(unusable) + without == count and (unusable or self.samples == 1):
            why = unusable[0] if unusable else "rows and tasks carry the right answer as `reference`"
            raise RecipeError(f"accuracy: none of {count} prompts has a reference to check: {why}")
        if unusable:
            yield f"accuracy leaves out {len(unusable)} of {count} prompts: {unusable[0]}"
        if without:
            yield f"accuracy leaves out {without} of {count} prompts, which have no reference"

    def prepare(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Find the labels to choose from, where none are given, and the teacher's majorities; name what has a value."""
        if self._check.kind == "choice" and not self._check.labels:
            right = [one for each in samples if (reference := self._reference(each)) for one in reference.accepted]
            given = {references.as_text(one) for one in right}
            self._check = replace(self._check, labels=tuple(sorted(given)))
        for one in samples:
            if one.model == "teacher" and references.raw(one.solution) is None:
                votes = [references.vote_of(text, self._check) for text in one.answer.samples]
                if (most := majority(votes)) is not None:
                    self._majorities[one.prompt] = most
        usable = [reference for one in samples if (reference := self._reference(one)) is not None]
        has = {"accuracy": bool(usable), "agreement": bool(self._majorities)}
        has["field_f1"] = any(one.field_f1("") is not None for one in usable)
        self.measures = tuple(one for one in self.measures if has.get(one.name, has["accuracy"]))

    def _reference(self, sample: Sample) -> Reference | None:
        """The sample's reference, if it can be checked."""
        if references.fault(sample.solution, self._check) is not None:
            return None
        return references.read(sample.solution, self._check)

    def score(self, sample: Sample) -> Scores:
        """`accuracy`, 0 or 1; `field_f1` of JSON; `pass_at_k` and `maj_at_k`; `agreement` without a reference."""
        if (reference := self._reference(sample)) is None:
            most = self._majorities.get(sample.prompt)
            if most is None or sample.model == "teacher":
                return {}
            return {"agreement": float(references.vote_of(sample.answer.text, self._check) == most)}
        fields = reference.field_f1(sample.answer.text)
        return {
            "accuracy": float(reference.passes(sample.answer.text)),
            **({"field_f1": fields} if fields is not None else {}),
            **self._of_samples(reference, sample),
        }

    def _of_samples(self, reference: Reference, sample: Sample) -> Scores:
        """`pass_at_k` and `maj_at_k` for each k of which there are as many samples."""
        texts = sample.answer.samples
        sizes = [k for k in self._sizes if k <= len(texts)]
        if not sizes:
            return {}
        votes = [(references.vote_of(text, reference.checks[0]), reference.passes(text)) for text in texts]
        right = sum(is_right for _, is_right in votes)
        return {
            **{f"pass_at_{k}": pass_at_k(len(texts), right, k) for k in sizes},
            **{f"maj_at_{k}": maj_at_k(votes, k, seed=str(sample.prompt)) for k in sizes if k > 1},
        }

    def tables(self, samples: Sequence[Sample], seed: int) -> Mapping[str, Any]:
        """`labels`: the confusion of labels by model, with precision, recall and F1; empty where none are asked for."""
        labelled: dict[str, dict[int, tuple[str, str | None]]] = {}
        for sample in samples:
            reference = self._reference(sample)
            if reference is not None and (pair := reference.labelled(sample.answer.text)) is not None:
                labelled.setdefault(sample.model, {})[sample.prompt] = pair
        return {"labels": label_scores(labelled, self._check.labels, seed=seed)} if labelled else {}


def _of_samples(k: int, samples: int) -> tuple[Measure, Measure]:
    of = f"among {k} of {samples} answers, drawn without the same one twice"
    return (
        Measure(
            name=f"pass_at_{k}",
            title=f"pass@{k}",
            unit="share",
            better="higher",
            explanation=f"The chance that a right one is {of}: 1 − C(n − c, k) / C(n, k), c of n answers being right.",
        ),
        Measure(
            name=f"maj_at_{k}",
            title=f"maj@{k}",
            unit="share",
            better="higher",
            explanation=f"The chance that the most frequent one is right {of}; of m that are equally frequent each "
            "counts 1/m. The mean over all subsets, or 1,000 of them.",
        ),
    )
