"""The recipe's section `compare`: metrics, a judge, benchmarks, and endpoints in place of student and base."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from distill.recipe.sections import BaseOptions, PartSection, SamplingOptions, Teacher


class Metric(PartSection):
    """One metric of the comparison: its name alone, or a mapping with its options."""

    metric: str
    """What is measured: a shipped metric, or `package.module:thing` of your own."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, value: Any) -> Any:
        return {"metric": value} if isinstance(value, str) else value


class Respondent(Teacher):
    """An endpoint whose answers are compared and never trained on."""

    terms: str = "not trained on"
    """Not needed: nothing is trained on these answers."""


Pair = Literal["student:teacher", "base:teacher", "student:base"]
"""Models whose answers a judge compares; the first two by default."""


class Judging(BaseOptions):
    """How a judge compares answers. Judges favour models of their own family: take one of another in `judge`."""

    mode: Literal["pairwise", "single", "both"] = "pairwise"
    """`pairwise`: which of two is better, asked in both orders; `single`: a grade of 0 to 10 for each answer."""
    pairs: Annotated[list[Pair], Field(min_length=1, default_factory=lambda: list[Pair](get_args(Pair)[:2]))]
    """The pairs of models whose answers are compared."""
    retest: Annotated[int, Field(ge=0)] = 20
    """Number of prompts per pair that are judged twice, to measure the judge's consistency."""
    criteria: tuple[str, ...] = ()
    """Criteria, the most important first; the five in prompts/judges when left out."""
    max_tokens: Annotated[int, Field(ge=16)] | None = None
    """Bound of the judge's reply; that of the recipe's judge, or 512, when left out."""


class Benchmarks(BaseOptions):
    """Tasks of the lm-evaluation-harness for base and student; a plain list of names is accepted."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of tasks, groups or tags of the package; no paths, no files."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of documents per task, from the first on; all when left out."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; the task's own number when left out."""
    chat: bool = False
    """Use the student's chat template; for tasks answered in free text."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Documents evaluated at once."""

    @model_validator(mode="before")
    @classmethod
    def _of_names(cls, value: Any) -> Any:
        return {"tasks": value} if isinstance(value, (list, tuple)) else value

    @field_validator("tasks")
    @classmethod
    def _are_names(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(r"\w[\w-]{0,120}", name, re.ASCII):
                raise ValueError(f"{name!r} is no task's name; files and paths are not read, so give a name")
        return list(dict.fromkeys(value))


class Compare(BaseOptions):
    """Ask student, base and teacher the same prompts."""

    path_fields = ("prompts", "answers")
    metrics: list[Metric] = Field(
        default_factory=lambda: [Metric(metric=name) for name in ("likelihood", "overlap", "style")]
    )
    """Names, or mappings such as `{metric: similarity, model: FOLDER}`."""
    prompts: str | None = None
    """A file of prompts in place of held-out rows: questions with `turns`, tasks, messages, or text with one per
    line."""
    system: str = ""
    """System message of the prompts of that file that have none."""
    answers: dict[Literal["base", "student", "teacher", "teacher_again"], str] = Field(default_factory=dict)
    """Files of recorded answers, such as `{teacher: FILE}`; these models are not asked."""
    student: Respondent | None = None
    """An endpoint that answers as the student, in place of the one that the recipe trains."""
    base: Respondent | None = None
    """An endpoint that answers as the untrained base."""
    judge: Judging | None = None
    """Let the recipe's `judge` (else the teacher) compare answers; `{}` for the defaults."""
    sampling: SamplingOptions | None = None
    """The teacher's own sampling when left out."""
    lm_eval: Benchmarks | None = None
    """Also evaluate base and student on tasks of the lm-evaluation-harness: `[arc_easy]`, or with options."""
