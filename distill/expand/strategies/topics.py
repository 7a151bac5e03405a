"""Grows tasks of several kinds about topics that the teacher proposes (after airoboros 2.2, Durbin, 2023)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field

from distill.core import assets
from distill.expand import pool
from distill.expand.pool import ExpansionSampling, OwnRule, PoolGrowth, PoolOptions, ProposalCost
from distill.expand.seeds import Seed, lines_of
from distill.types import Completion, Failure, Flow, Request, Task

Kind: TypeAlias = Literal[
    "general",
    "contextual",
    "counterfactual",
    "coding",
    "reasoning",
    "trivia",
    "roleplay",
    "writing",
    "plan",
    "explanation",
    "opinion",
    "editing",
]
_BULLET = re.compile(r"^[ \t]*[-*\u2022][ \t]+(\S[^\n]*)$", re.MULTILINE)
_NUMBER_AGAIN = re.compile(r"\A\d+[.)][ \t]*")
TOPIC_WORDS = 8
"""Most words of a topic; anything longer is a sentence."""


class TopicsSampling(ExpansionSampling):
    """Sampling of topics and tasks."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = 2048


class Topics(PoolGrowth):
    """Topics first, then requests for tasks of one kind, each task about another topic.

    `topic_requests` lists of 20 topics are requested once and shared by all requests. Request k takes the next kind in
    turn, draws a topic for each of its tasks, and asks for `TASK 1:` to `TASK n:`. Kind and topic are recorded in
    `meta`.

    Differences from airoboros, and why:
    - each list of topics asks for three initial letters, because "random" topics of equal requests repeat;
    - similarity is ROUGE-L in place of embeddings, which would need another model;
    - twelve kinds in place of its 28, with equal shares; no reading-level hint and no judge: `curate` has filters.
    """

    class Options(PoolOptions):
        """Options of `expand: {strategy: topics}`."""

        sampling: TopicsSampling = TopicsSampling()
        """Sampling of topics and tasks."""
        kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = get_args(Kind)
        """Kinds of tasks, used in turn."""
        new_tasks: Annotated[int, Field(ge=1, le=100)] = 10
        """Tasks per request, each about a different topic."""
        path_fields: ClassVar[tuple[str, ...]] = ("topics_file",)
        topics: tuple[str, ...] = ()
        """Your own topics. Without them and without a file, the teacher proposes topics."""
        topics_file: str | None = None
        """A text file with more topics, one on each line."""
        topic_requests: Annotated[int, Field(ge=1, le=1000)] = 20
        """Number of lists of topics requested from the teacher."""
        topics_each: Annotated[int, Field(ge=1, le=100)] = 20
        """Topics in each of these lists."""
        reject: tuple[OwnRule, ...] = ("needs_input",)

        @property
        def cost(self) -> ProposalCost:
            """Estimate: 20 tokens per task; the lists of topics come first."""
            lists = 0 if self.topics or self.topics_file else self.topic_requests
            prompt, samplings = 120 + 8 * self.new_tasks, (self.sampling.sampling(),)
            return ProposalCost(self.new_tasks, prompt, 20 * self.new_tasks, samplings=samplings, once=lists)

    options: Options

    def __init__(self, options: Options, *, seed: int, target: int, seeds: Sequence[Seed] = ()) -> None:
        super().__init__(options, seed=seed)
        self._topics = [*options.topics, *(lines_of(options.topics_file) if options.topics_file else ())]
        self._list = assets.load("strategies/topics_list.txt")
        self._templates = {kind: assets.load(f"strategies/topics_{kind}.txt") for kind in options.kinds}

    def propose(self, k: int) -> Flow[list[Task]]:
        """Request topics (the same lists for every k, so they are paid for once), then tasks about some of them."""
        topics = self._topics or (yield from self._ask_topics())
        if not topics:
            return []
        rng, kind = self.random(k), self.options.kinds[k % len(self.options.kinds)]
        sample = rng.sample(topics, min(self.options.new_tasks, len(topics)))
        answer: Completion | Failure = yield self._request(kind, sample, k)
        if isinstance(answer, Failure):
            return []
        return _tasks_of(answer, sample, pool.origin("topics", k, answer, []) | {"kind": kind}, k)

    def _ask_topics(self) -> Flow[list[str]]:
        """The distinct topics of all lists, in order; kept, since every request would get the same."""
        sampling, count = self.options.sampling.sampling(), self.options.topics_each
        requests = []
        for number in range(self.options.topic_requests):
            letters = self.random(f"topics:{number}").sample(string.ascii_uppercase, 3)
            text = assets.fill(self._list, count=str(count), letters=f"{letters[0]}, {letters[1]} and {letters[2]}")
            requests.append(pool.request(text, number, sampling))
        answers: tuple[Completion | Failure, ...] = yield tuple(requests)
        reply = [pool.reply_text(answer) for answer in answers if isinstance(answer, Completion)]
        self._topics = list(dict.fromkeys(topic for text in reply for topic in listed_topics(text)))
        return self._topics

    def _request(self, kind: Kind, topics: Sequence[str], k: int) -> Request:
        lines = "\n".join(f"{number}. {topic}" for number, topic in enumerate(topics, start=1))
        text = assets.fill(self._templates[kind], count=str(len(topics)), topics=lines)
        return pool.request(text, k, self.options.sampling.sampling())


def listed_topics(text: str) -> list[str]:
    """The topics of a numbered or bulleted list, in lower case, without explanations after a colon or dash."""
    items = [item.split("\n")[0] for _, item in pool.marked_items(text)] or _BULLET.findall(text)
    names = (
        _NUMBER_AGAIN.sub("", item).split(":")[0].split(" - ")[0].split(" \u2013 ")[0].strip(" .*_\"'").lower()
        for item in items
    )
    return [name for name in names if name and len(name.split()) <= TOPIC_WORDS]


def _tasks_of(answer: Completion, topics: Sequence[str], meta: dict[str, object], k: int) -> list[Task]:
    """The items as tasks, each with the topic of its number, if there is one."""
    items = pool.marked_items(pool.reply_text(answer))
    tasks = pool.candidates(k, [item for _, item in items], meta, is_cut=answer.finish == "length")
    if not items:
        return tasks
    topic_by_number = dict(enumerate(topics, start=1))
    return [
        replace(task, meta={**task.meta, "topic": topic_by_number[number], "lineage": [topic_by_number[number]]})
        if number in topic_by_number
        else task
        for task, (number, _) in zip(tasks, items, strict=True)
    ]
