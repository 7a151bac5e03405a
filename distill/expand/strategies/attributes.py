"""Grows tasks from sampled attribute combinations: audience, subject, difficulty …"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field, model_validator

from distill.core import assets
from distill.expand import pool
from distill.expand.pool import ExpansionSampling, OwnRule, PoolGrowth, PoolOptions, ProposalCost
from distill.expand.seeds import Seed, lines_of
from distill.types import Completion, Failure, Flow, Task

Name: TypeAlias = Annotated[str, Field(pattern=r"^\w+$")]
COUNT = "count"
"""The template's slot for the number of tasks; no attribute may have this name."""
OWN = ("kind", "reference")
"""Attributes that are the task's own: by which teachers share tasks, and the right answer."""
_SLOT = re.compile(r"\{(\w+)\}")


class AttributesSampling(ExpansionSampling):
    """Sampling of tasks."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = 1024


class Attributes(PoolGrowth):
    """A sampler over lists: each request draws a value of every attribute and asks for matching tasks.

    The values are recorded in `meta.attributes`; that of an attribute `kind` is also the task's kind, by which several
    teachers can share the tasks, and that of `reference` the right answer to the task, such as its label.
    """

    class Options(PoolOptions):
        """Options of `expand: {strategy: attributes}`."""

        path_fields: ClassVar[tuple[str, ...]] = ("attribute_files",)
        attributes: dict[Name, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
        """Names and their values, such as `{difficulty: [easy, hard], format: [a question, a request]}`."""
        attribute_files: dict[Name, str] = Field(default_factory=dict)
        """Names, and text files with a value on each line, such as `{persona: personas.txt}`."""
        template: str = ""
        """Your own prompt, with a `{name}` for every attribute, and optionally `{count}`. The format of the reply is
        described after it."""
        sampling: AttributesSampling = AttributesSampling()
        """Sampling of tasks."""
        new_tasks: Annotated[int, Field(ge=1, le=100)] = 3
        """Tasks per request; with fewer, more combinations are drawn."""
        reject: tuple[OwnRule, ...] = ("needs_input", "statement")

        @model_validator(mode="after")
        def _slots_fit(self) -> Attributes.Options:
            names = [*self.attributes, *self.attribute_files]
            if not names:
                raise ValueError("no attribute: give `attributes`, such as {difficulty: [easy, hard]}")
            if twice := next((name for name in [*names, COUNT] if [*names, COUNT].count(name) > 1), None):
                raise ValueError(f"two attributes are called {twice}, or one like the number of tasks; rename one")
            slots = set(_SLOT.findall(self.template)) - {COUNT}
            if self.template and (odd := sorted(slots ^ set(names))):
                raise ValueError(f"template and attributes do not match: {{{odd[0]}}} is only in one of them")
            return self

        @property
        def cost(self) -> ProposalCost:
            """Estimate: 20 tokens per task."""
            return ProposalCost(self.new_tasks, 130, 20 * self.new_tasks, samplings=(self.sampling.sampling(),))

    options: Options

    def __init__(self, options: Options, *, seed: int, target: int, seeds: Sequence[Seed] = ()) -> None:
        super().__init__(options, seed=seed)
        from_files = {name: lines_of(path) for name, path in options.attribute_files.items()}
        self._values: dict[str, Sequence[str]] = {**options.attributes, **from_files}
        self._frame = assets.load("strategies/attributes.txt")
        self._wish = assets.load("strategies/attributes_wish.txt")

    def propose(self, k: int) -> Flow[list[Task]]:
        """Request tasks for the values drawn for request k; returns the unfiltered items, or nothing on a failure."""
        rng = self.random(k)
        combination = {name: rng.choice(values) for name, values in self._values.items()}
        answer: Completion | Failure = yield pool.request(
            self._prompt(combination), k, self.options.sampling.sampling()
        )
        if isinstance(answer, Failure):
            return []
        meta = pool.origin("attributes", k, answer, [f"{name}: {value}" for name, value in combination.items()])
        meta |= {"attributes": combination, **{name: combination[name] for name in OWN if name in combination}}
        items = [item for _, item in pool.marked_items(pool.reply_text(answer))]
        return pool.candidates(k, items, meta, is_cut=answer.finish == "length")

    def _prompt(self, combination: Mapping[str, str]) -> str:
        count = str(self.options.new_tasks)
        if self.options.template:
            wish = fill_slots(self.options.template, {**combination, COUNT: count})
        else:
            lines = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in combination.items())
            wish = assets.fill(self._wish, attributes=lines)
        return assets.fill(self._frame, wish=wish, count=count)


def fill_slots(template: str, values: Mapping[str, str]) -> str:
    """The template with each known `{name}` replaced; other braces stay, and slots within values are not replaced."""
    return _SLOT.sub(lambda slot: values.get(slot[1], slot[0]), template)
