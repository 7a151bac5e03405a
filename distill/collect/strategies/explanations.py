"""Orca: explained answers under a system message sampled per task (Mukherjee et al., 2023)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Annotated, Any

from pydantic import Field, field_validator

from distill.collect.sessions import ROLE, InputForm, one_turn, opening, text_of
from distill.core import assets
from distill.core.registry import suggest
from distill.recipe import Asks, BaseOptions
from distill.text.thinking import Handling
from distill.types import Completion, Failure, Flow, Request, Sampling, Session, Task

DEFAULT = "default"
"""Key of the weights for tasks of other collections, or of none."""
Weights = dict[str, dict[str, Annotated[float, Field(ge=0)]]]

WEIGHTS: Weights = {
    DEFAULT: {
        "none": 2,
        "detailed": 2,
        "long": 1,
        "explain_simply": 1,
        "obedient": 1,
        "find_out": 1,
        "find_out_briefly": 1,
    },
    "reasoning": {"steps_and_reasons": 1, "question_steps": 1, "task_steps": 1},
    "instructions": {
        "none": 1,
        "detailed": 1,
        "obedient": 1,
        "definition_applied": 1,
        "task_steps": 1,
        "teacher_of_rules": 1,
        "translator_of_rules": 1,
        "parts_and_usage": 1,
    },
    "questions": {"none": 1, "detailed": 1, "long": 1, "obedient": 1, "question_steps": 1},
    "choices": {"long": 1, "explain_simply": 1, "describe_and_explain": 1, "choice_with_knowledge": 1, "obedient": 1},
}
"""Weights of the system messages that each collection draws from. Orca drew by sub-collection of FLAN-v2, on which
these are modelled: reasoning on CoT, instructions on NIV2, questions on T0, choices on Flan2021."""
ALIASES = {
    **{"cot": "reasoning", "math": "reasoning", "niv2": "instructions", "t0": "questions", "knowledge": "questions"},
    **{"flan": "choices", "flan2021": "choices", "classification": "choices", "multiple_choice": "choices"},
}
"""Other names of collections."""


class Explanations:
    """One request per task, under one of sixteen system messages that ask for explanations; the session keeps it.

    A task's collection is its `meta.collection`, else its `meta.kind`; it determines the weights, and is recorded in
    the session's meta, with the message's name as `meta.explanation`.

    Progressive teachers (5 million answers of one, then one million of a stronger one) are two teachers in the recipe,
    the stronger with `kinds: [hard]`; `stages: {hard: 2}` then gives the sessions of those tasks `meta.stage: 2` and
    all others 1, so that training can take them in order. A prompt that both teachers answer stands in the task file
    twice, under two ids.
    """

    class Options(BaseOptions):
        """Options of `collect: {strategy: explanations}`."""

        weights: Weights = Field(default_factory=dict)
        """By collection, the weights of system messages by name; those of a shipped collection are replaced, others are
        added. `default` is for tasks of other collections, or of none."""
        stages: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
        """By collection or kind, the stage of training that a session is meant for; 1 for all others. Empty: a session
        gets the `meta.stage` of its task, if any."""
        input: InputForm = "below"
        """Position of a task's input: `below`, `labelled` or `before` the instruction; `varied` draws a form for each
        task."""
        thoughts: Handling = "separate"
        """How a reasoning teacher's thoughts are treated: `separate` (into meta), `strip`, or `keep` (learned)."""

        @field_validator("weights")
        @classmethod
        def _known(cls, weights: Weights) -> Weights:
            for collection, of in weights.items():
                if unknown := next((name for name in of if name not in messages()), None):
                    raise ValueError(f'{collection}: no system message "{unknown}"{suggest(unknown, messages())}')
                if not any(of.values()):
                    raise ValueError(f"{collection}: no weight is above 0")
            return weights

        @property
        def asks(self) -> Asks:
            """One request under a system message."""
            return Asks(1, 40)

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()
        self._weights = {**WEIGHTS, **{name.casefold(): of for name, of in options.weights.items()}}

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of a task, or the failure in its place. `rng` draws the system message, then the form."""
        collection = text_of(task.meta, "collection", "kind")
        name = self._message_name(collection, rng)
        prompt = opening(task, system=messages()[name], form=self.options.input, rng=rng)
        answer: Completion | Failure = yield Request(role=ROLE, messages=prompt, sampling=self.sampling)
        meta = {"explanation": name, "collection": collection, "stage": self._stage(task.meta)}
        return one_turn(task, prompt, answer, strategy="explanations", handling=self.options.thoughts, **meta)

    def _message_name(self, collection: str, rng: Random) -> str:
        name = collection.casefold()
        group = name if name in self._weights else ALIASES.get(name, DEFAULT)
        weights = self._weights[group]
        return rng.choices(list(weights), weights=list(weights.values()))[0]

    def _stage(self, meta: Mapping[str, Any]) -> Any:
        if not self.options.stages:
            return meta.get("stage")
        stages = (self.options.stages.get(str(meta.get(name))) for name in ("collection", "kind"))
        return next((stage for stage in stages if stage is not None), 1)


@cache
def messages() -> dict[str, str]:
    """The system messages by name, including the empty one."""
    lines = assets.find("prompts/strategies/explanations.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["name"]: row["text"] for row in map(json.loads, lines)}
