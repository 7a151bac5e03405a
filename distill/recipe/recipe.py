"""The whole recipe: its sections, and the constraints between them."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.core.credentials import without_literals
from distill.recipe.comparison import Compare
from distill.recipe.sections import (
    Collect,
    Expand,
    HeldOut,
    OneOrMore,
    PartSection,
    Rule,
    Source,
    Student,
    Teacher,
    Train,
)


class Recipe(BaseModel):
    """A whole run. Sections left out are stages that do not run."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run, and of its folder in runs/."""
    seed: int = 7
    """Seed of everything that is drawn at random: another one gives other tasks, samples and weights."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Most USD that the whole run may spend, over all invocations; needs prices. No cap when left out."""
    teacher: OneOrMore | None = None
    """The model to imitate, or a list of several that share the tasks."""
    user: Teacher | None = None
    """The model that plays the user in strategies that simulate one; the teacher when left out."""
    judge: Teacher | None = None
    """The model that rates answers; the (first) teacher when left out."""
    weaker: Teacher | None = None
    """The model whose answers the strategy `pairs` contrasts with the teacher's: the student so far (its run's folder
    as `model`), or a smaller or older model."""
    reuse: list[str] = []
    """Other runs whose answers are reused."""
    expand: Expand | None = None
    """Grow tasks from seeds."""
    collect: Collect | None = None
    """Have the teacher answer the tasks."""
    sources: list[Source] = []
    """Existing data, whose sessions precede collect's in sessions.jsonl."""
    test: HeldOut | None = None
    """Prompts held out where there are sources and no `collect`: 32 with `compare`, else none. See collect.test."""
    curate: list[Rule] | None = None
    """Rules that keep, label or drop sessions, in this order."""
    student: Student | None = None
    """The model to train."""
    train: Train | None = None
    """Fine-tune the student on the kept sessions."""
    compare: Compare | None = None
    """Ask student, base and teacher the same held-out prompts."""
    files: dict[str, str] = {}
    """In a resolved recipe: SHA-256 of each file that it names, by path; a file that has changed is an error."""

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All teachers; the first one also answers the requests of expand."""
        if self.teacher is None:
            return ()
        return tuple(self.teacher) if isinstance(self.teacher, list) else (self.teacher,)

    @property
    def held_out(self) -> HeldOut:
        """Prompts held out for compare."""
        if self.collect is not None:
            return self.collect.test
        default = HeldOut() if self.compare is not None and self.sources else HeldOut(count=0)
        return default if self.test is None else self.test

    @property
    def roles(self) -> dict[str, Teacher]:
        """The other models that a strategy may ask, by role: those of the sections `user`, `judge` and `weaker`."""
        sections = {"user": self.user, "judge": self.judge, "weaker": self.weaker}
        return {name: one for name, one in sections.items() if one is not None}

    @property
    def respondents(self) -> dict[str, Teacher]:
        """The endpoints that answer as student or base in the comparison, by that name."""
        sides = (("student", self.compare.student), ("base", self.compare.base)) if self.compare is not None else ()
        return {name: one for name, one in sides if one is not None}

    @property
    def models(self) -> dict[str, Teacher]:
        """All models that this recipe asks, by the key of their section; of several teachers also by name."""
        several = len(self.teachers) > 1
        teachers = {f"teacher.{one.display_name}" if several else "teacher": one for one in self.teachers}
        return teachers | self.roles | {f"compare.{side}": one for side, one in self.respondents.items()}

    @property
    def main_teacher(self) -> Teacher | None:
        """The first teacher."""
        return self.teachers[0] if self.teachers else None

    @model_validator(mode="after")
    def _teachers_fit(self) -> Recipe:
        names = [teacher.display_name for teacher in self.teachers]
        if self.teacher is not None and not names:
            raise ValueError("teacher: the list is empty")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'teacher: two are called "{twice}"; give each a `name`')
        if len(names) > 1 and all(teacher.kinds for teacher in self.teachers):
            raise ValueError("teacher: each names its kinds, so that other tasks have none; leave one without `kinds`")
        if self.collect is not None and self.collect.mode == "batch":
            self._batch_fits()
        for role, one in (self.roles | self.respondents).items():
            if one.kinds or one.weight != 1:
                raise ValueError(f"{role}: `kinds` and `weight` share tasks among teachers; take them out")
        return self

    def _batch_fits(self) -> None:
        if self.expand is not None:
            raise ValueError(
                "collect.mode: batch: a batch takes up to a day, and each request of expand depends on earlier answers;"
                " expand in another run, and give its tasks.jsonl as collect.tasks"
            )
        if any(one.base_url is None for one in (*self.teachers, *self.roles.values())):
            raise ValueError("collect.mode: batch: needs endpoints with /v1/batches: give each model a base_url")
        if any(one.literals for one in (*self.teachers, *self.roles.values())):
            raise ValueError(
                "collect.mode: batch: a secret stands in base_url or extra_body, and a batch outlives this process; "
                "put it into an environment variable, and write $NAME in its place"
            )
        if len(self.teachers) > 1:
            raise ValueError("collect.mode: batch: takes one teacher; make a run for each, and join them by `reuse`")

    @model_validator(mode="after")
    def _sections_fit(self) -> Recipe:
        for name in ("expand", "collect"):
            if getattr(self, name) is not None and self.teacher is None:
                raise ValueError(f"`{name}` needs a `teacher` section")
        if self.collect is not None and self.collect.tasks is None and self.expand is None:
            raise ValueError("`collect` has no tasks: add an `expand` section, or `collect: {tasks: FILE}`")
        if self.collect is not None and self.collect.strategy == "pairs" and self.weaker is None:
            raise ValueError(
                "collect.strategy: pairs contrasts the teacher's answers with those of a weaker model: add a section "
                "`weaker`, such as {model: runs/NAME, serve: transformers, terms: …} for that run's student"
            )
        if (self.train is None) != (self.student is None):
            raise ValueError("`train` and `student` belong together: one of them is missing")
        if self.compare is not None:
            self._compare_fits(self.compare)
        return self

    def _compare_fits(self, compare: Compare) -> None:
        sides = {
            "student": self.train is not None or compare.student is not None,
            "base": self.train is not None or compare.base is not None,
            "teacher": self.teacher is not None or (compare.prompts is None and bool(self.sources)),
        }
        for side, is_there in sides.items():
            if not is_there and side not in compare.answers:
                section = "`teacher`" if side == "teacher" else f"`student` and `train`, or compare.{side}"
                raise ValueError(f"`compare` has no {side}: add {section}, or compare.answers.{side}: FILE")
        if compare.judge is not None and self.judge is None and self.teacher is None:
            raise ValueError("compare.judge: there is no model to judge; add a `judge` section")
        elsewhere = {*compare.answers} & {"base", "student"} or compare.student or compare.base
        if compare.lm_eval is not None and (self.train is None or elsewhere):
            raise ValueError("compare.lm_eval: is for a student that is trained here, and for its base; take it out")
        if compare.prompts is None and self.collect is not None and self.collect.test.count == 0:
            raise ValueError("`compare` needs held-out prompts: set `collect.test` to 32 or more")
        if compare.prompts is None and self.collect is None and not self.sources:
            raise ValueError("`compare` has no prompts: add compare.prompts: FILE, or a `collect` section")

    @model_validator(mode="after")
    def _sources_fit(self) -> Recipe:
        names = [source.display_name for source in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'sources: two are called "{twice}"; give each a `name`')
        if self.test is not None and (self.collect is not None or not self.sources):
            raise ValueError("test: is for a recipe with sources and without `collect`; use collect.test")
        if self.test is not None and self.curate is None:
            raise ValueError("test: prompts are held out by the stage curate; add `curate: []`")
        if self.sources and self.compare is not None and self.compare.prompts is None and self.held_out.count == 0:
            raise ValueError("`compare` needs held-out prompts: set `test` to 32 or more")
        unique = [rule.filter for rule in self.curate or () if rule.filter in ("exact_duplicate", "near_duplicate")]
        for source in self.sources:
            if source.weight > 1 and unique:
                raise ValueError(
                    f"sources: {source.display_name}: weight {source.weight:g} repeats sessions, which {unique[0]}"
                    " drops again; take that rule out, or lower the weights of the others instead"
                )
            if source.max_tokens is not None and source.tokenizer is None and self.student is None:
                raise ValueError(f"sources: {source.display_name}: max_tokens needs a `tokenizer`, such as smollm2")
        return self

    def document(self) -> dict[str, Any]:
        """The recipe as plain values, its parts' options included, with `***` for each secret written in it."""
        document: dict[str, Any] = without_literals(self.model_dump(exclude_none=True))
        for name in ("expand", "collect", "train"):
            if (section := getattr(self, name)) is not None:
                document[name] = _plain(section)
        if self.curate is not None:
            document["curate"] = [_plain(rule) for rule in self.curate]
        if self.compare is not None:
            metrics = [_plain(one) for one in self.compare.metrics]
            document["compare"]["metrics"] = [one["metric"] if len(one) == 1 else one for one in metrics]
        document["sources"] = [source.model_dump(by_alias=True, exclude_none=True) for source in self.sources]
        if not self.sources:
            del document["sources"]
        return document

    def to_yaml(self) -> str:
        """The recipe as YAML, which `load` reads back as an equal one."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True, width=120)


def _plain(section: PartSection) -> dict[str, Any]:
    options = section.options.model_dump(exclude_none=True) if section.options is not None else {}
    return {**section.model_dump(exclude_none=True), **options}
