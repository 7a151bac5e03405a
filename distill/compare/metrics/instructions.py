"""Share of programmatically checkable instructions that an answer follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from distill import recipe
from distill.compare.metrics import Measure, Sample, Scores
from distill.compare.metrics.instruction_checks import follows, follows_loosely, problem
from distill.core import assets
from distill.errors import RecipeError
from distill.formats.containers import rows
from distill.formats.json_rows import RejectedRow

SHIPPED = "instructions.jsonl"


class Instructions:
    """Adds prompts of its own with checks; other prompts with checks are scored too."""

    class Options(recipe.BaseOptions):
        """Options of `metric: instructions`."""

        path_fields: ClassVar[tuple[str, ...]] = ("prompts",)
        prompts: str | None = None
        """A file of your own in the form of the shipped one: JSONL of `turns` and `checks`."""

    scope: Literal["text"] = "text"
    measures = (
        Measure(
            name="instructions",
            title="Instructions followed",
            unit="share",
            better="higher",
            explanation="Share of prompts of which every instruction that a program can check is followed to the "
            "letter: lengths, lists, formats, words to use or to avoid. It says nothing of whether an answer is right.",
        ),
        Measure(
            name="instructions_loose",
            title="Instructions followed, loosely",
            unit="share",
            better="higher",
            explanation="The same, where an introduction, a last remark or asterisks may be taken away first.",
        ),
        Measure(
            name="instructions_each",
            title="Single instructions followed",
            unit="share",
            better="higher",
            explanation="Share of a prompt's single instructions that are followed to the letter.",
        ),
    )

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def prompts(self) -> Iterator[Mapping[str, Any]]:
        """Rows of the additional prompts. Raises `RecipeError` for a row without checks or with unknown ones."""
        path = Path(self.options.prompts or assets.find(f"prompts/{SHIPPED}"))
        for row in rows(path):
            fault = row.detail if isinstance(row, RejectedRow) else _fault(row.value.get("checks"))
            if isinstance(row, RejectedRow) or fault is not None:
                raise RecipeError(f"instructions: {path}, line {row.line}: {fault}")
            yield row.value

    def score(self, sample: Sample) -> Scores:
        """The three shares, 0 to 1; empty for a prompt without checks."""
        if not sample.checks:
            return {}
        text = sample.answer.text
        results = [follows(text, check) for check in sample.checks]
        return {
            "instructions": float(all(results)),
            "instructions_loose": float(all(follows_loosely(text, check) for check in sample.checks)),
            "instructions_each": sum(results) / len(results),
        }


def _fault(checks: Any) -> str | None:
    if not isinstance(checks, list) or not checks:
        return "no `checks`; expected a list of mappings with a `kind`"
    return next(filter(None, map(problem, checks)), None)
