"""Base of the expansion strategies: parses lists, checks the form of tasks, and rejects near-duplicates."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from distill import recipe
from distill.core import assets
from distill.expand.seeds import Seed
from distill.expand.topic import Topic
from distill.text.rouge_index import NoveltyIndex
from distill.text.thinking import split_thoughts
from distill.text.words import phrase_pattern, word_count
from distill.text.wrappers import strip_quotes, strip_wrappers, without_rulers
from distill.types import Completion, Message, Request, Sampling, Task

ROLE = "teacher"
FEWEST_OUTSTANDING, MOST_OUTSTANDING = 4, 128
"""Bounds of the window where the recipe sets none."""
MIN_WORDS = 4
MAX_WORDS = 150
"""Bounds of an instruction, in words (Self-Instruct's code: more than 3, at most 150)."""

FORBIDDEN_WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
"""Words of tasks that a text model cannot do: Self-Instruct's list, then Alpaca's five additions."""
OwnRule: TypeAlias = Literal["needs_input", "statement", "common_opening"]
OPENING_WORDS = 3
"""Number of first words that count as a task's opening."""
OPENINGS_FREE, OPENINGS_SHARE = 8, 8
"""An opening is common when at least 8 tasks, and at least one in 8 of all tasks, have it."""

Ask: TypeAlias = Literal["completion", "chatml", "chat"]


# --- options


@dataclass(frozen=True, slots=True)
class ProposalCost:
    """Approximate cost and yield of one proposal, for the forecast of `check`."""

    tasks: float
    """Tasks in a proposal where none is refused."""
    prompt_tokens: int
    """Sum over the requests of a proposal."""
    completion_tokens: int
    """The same, of the answers of the smallest proposal."""
    requests: int = 1
    roles: tuple[str, ...] = ()
    """Roles asked beside the teacher, such as `judge`."""
    samplings: tuple[Sampling, ...] = ()
    """Of each request of a proposal; they bound its answers."""
    once: int = 0
    """Requests before the first proposal."""


class PoolOptions(recipe.BaseOptions):
    """Options of every expansion."""

    window: Annotated[int, Field(ge=1)] | None = None
    """Most requests in flight: request k sees the tasks of the requests up to k - window. When left out: 4, and one
    more for every 4 requests admitted, up to 128, so that a small run wastes few requests and a large one is fast. The
    tasks depend on it."""
    rouge_l: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Greatest similarity (ROUGE-L) of a new task to any earlier one (Self-Instruct, section 2.2)."""
    reject: tuple[OwnRule, ...] = ()
    """Rules in addition to the original's: `needs_input` rejects an instruction about a text that it does not contain
    ("Summarise this paragraph."), `statement` one that asks nothing ("The sky is blue."), `common_opening` one whose
    first three words open an eighth of the earlier tasks (at least 8). Of 999 Alpaca tasks the first rejects 203 of the
    412 with an input and 8 of the 587 without, the second 2."""
    forbidden: tuple[str, ...] = ()
    """Words or phrases that no task may contain, in addition to those that the strategy forbids; found as by the filter
    `keyword`, case ignored."""


class SeededOptions(PoolOptions):
    """Options of expansions from seeds."""

    on_topic: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Least similarity of a new task to the nearest seed (TF-IDF cosine), such as 0.1; others are `off_topic`."""


class ExpansionSampling(recipe.SamplingOptions):
    """Sampling of expansion requests; the teacher's own sampling applies to collect's requests."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 0.9
    max_tokens: Annotated[int, Field(ge=1)] | None = 200


# --- requests and replies


def request(text: str, k: int, sampling: Sampling, *, ask: Ask = "chat") -> Request:
    """A request to the teacher: as a chat message, or as raw text to continue."""
    if ask == "chat":
        return Request(role=ROLE, messages=(Message("user", text),), sampling=sampling, replica=k)
    return Request(role=ROLE, prompt=text, sampling=sampling, replica=k)


def list_template(name: str, ask: Ask) -> str:
    """The prompt of a strategy that has the teacher continue a list; a form of its own for `chatml`."""
    return assets.load(f"strategies/{name}{'_chatml' if ask == 'chatml' else ''}.txt")


def origin(strategy: str, k: int, answer: Completion, lineage: Sequence[str]) -> dict[str, Any]:
    """The provenance in the meta of every task."""
    return {"strategy": strategy, "request": k, "replica": k, "lineage": list(lineage), "key": answer.key}


def reply_text(answer: Completion) -> str:
    """The text of an answer, without a reasoning teacher's thoughts and without wrappers around a list."""
    return strip_wrappers(split_thoughts(answer).answer)


def candidates(k: int, items: Iterable[str], meta: Mapping[str, Any], *, is_cut: bool) -> list[Task]:
    """The items of one answer as tasks with provisional ids (`k.item`).

    The last item of a truncated answer gets the fault `cut_off`; an answer without items becomes one candidate with the
    fault `no_item`.
    """
    tasks = [Task(f"{k}.{number}", item, meta=meta) for number, item in enumerate(items)]
    if not tasks:
        return [Task(f"{k}.0", "", meta={**meta, "fault": "no_item"})]
    return [*tasks[:-1], with_fault(tasks[-1], "cut_off")] if is_cut else tasks


def with_fault(task: Task, reason: str) -> Task:
    """The same candidate, marked for refusal with this reason."""
    return replace(task, meta={**task.meta, "fault": reason})


_NUMBERED = re.compile(r"(?:^|\n)\s*(?:\d+\s?\.(?:\s+|$))+")


def numbered_items(text: str) -> list[str]:
    """The items of a continued list, split at numbers that begin a line.

    An item ends at a blank line; its white space is collapsed and its first letter made upper case.
    """
    lines = [line.strip() for line in text.split("\n")]
    thin = "\n".join([line for line, before in zip(lines, ["", *lines], strict=False) if line or before])
    paragraphs = (piece.strip().split("\n\n")[0] for piece in _NUMBERED.split(thin))
    items = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return [item[0].upper() + item[1:] for item in items if item]


_MARK = re.compile(
    r"^[^\w\n]*(?:TASK|TSK)[ \t]*#?(\d+)[ \t]*[\]).:\uff1a\u2013\u2014-]*\**[ \t]*", re.IGNORECASE | re.MULTILINE
)
_NUMBER = re.compile(r"^[^\w\n]*(\d+)[ \t]?[.):](?=[\s*])\**[ \t]*", re.MULTILINE)
_MARK_AGAIN = re.compile(r"\A\W*(?:\d+[ \t]?[.)][ \t]*)?(?:TASK|TSK)[ \t]*(?:#?\d+)?[ \t]*[.:\uff1a]\**[ \t]*")
_LONE_BULLET = re.compile(r"\A[-*\u2022][ \t]+(?=[^\n]+\Z)")


def marked_items(text: str) -> list[tuple[int, str]]:
    """The items after marks such as `TASK 3:`, with their numbers; white space inside an item is kept.

    Text before the first mark is ignored. Where no line begins with a mark, plain numbers (`3.`) are marks, and an item
    ends at a blank line.
    """
    whole = _MARK.search(text) is not None
    pieces = (_MARK if whole else _NUMBER).split(text)[1:]
    items = zip(map(int, pieces[::2]), pieces[1::2], strict=True)
    texts = ((number, item.strip() if whole else item.strip().split("\n\n")[0]) for number, item in items)
    return [(number, bare) for number, item in texts if (bare := _bare_item(item))]


def _bare_item(item: str) -> str:
    """The item without rulers, quotation marks around the whole, a second mark, and a single leading bullet."""
    item = _MARK_AGAIN.sub("", strip_quotes(without_rulers(item)))
    if item.count("**") % 2:  # the end of a bold face whose beginning was in the mark
        item = item.strip().removesuffix("**").rstrip()
    return _LONE_BULLET.sub("", strip_quotes(item))


# --- rules of form


_MATERIAL = (
    "text|passage|paragraphs?|sentences?|article|story|poem|code|snippet|list|table|email|letter|review|dialogue|"
    "conversation|words|numbers|data|statements?|function|program|recipe|essay|document"
)
_NEEDS_INPUT = re.compile(
    rf"\b(?:the|these) (?:following|given|provided|below|above)\b|\b(?:this|these) (?:{_MATERIAL})\b"
    rf"|\b(?:given|provided|following) (?:an? |the )?(?:{_MATERIAL})\b|:$"
    r"|\b(?:provided|given|listed|shown|written) (?:below|above|here)\b",
    re.IGNORECASE,
)
_BRINGS_TEXT = re.compile(r":\s*\S|[\"\u201c][^\"\u201c\u201d]+[\"\u201d]")
_SUBJECTS = (
    "I|I'm|I\u2019m|I've|You|You're|My|Your|We|Our|He|His|She|Her|They|It|It's|There|This|That|These|Those|The|An?"
)
_ASKING = "(?:I|You|We) (?:need|want|would like|must|should)"
_TELLS = re.compile(rf"(?!{_ASKING}\b)(?:{_SUBJECTS}|Don't|Don\u2019t|\d[\d.,]*)\s")
_CLAUSE_FIRST = re.compile(
    rf"(?:If|When|In|On|At) [^,]+, (?:{_SUBJECTS})\s|If (?:there|the|it|you|I) [^,]+$", re.IGNORECASE
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def needs_input(instruction: str) -> bool:
    """Whether it refers to a text that it does not contain: after a colon, in quotation marks or on further lines."""
    brings = "\n" in instruction.strip() or _BRINGS_TEXT.search(instruction) is not None
    return not brings and _NEEDS_INPUT.search(instruction) is not None


def is_statement(instruction: str) -> bool:
    """Whether no sentence is a question or request: each begins with its subject, or with a clause before that."""
    sentences = _SENTENCES.split(instruction)
    return "?" not in instruction and all(_TELLS.match(each) or _CLAUSE_FIRST.match(each) for each in sentences)


def form_fault(instruction: str, rules: Collection[str] | None = None) -> str | None:
    """The first of Self-Instruct's rules of form, or of those in `rules`, that an instruction breaks; else `None`."""
    applicable = {name: breaks for name, breaks in FORM_RULES.items() if rules is None or name in rules}
    return next((name for name, breaks in applicable.items() if breaks(instruction)), None)


def _opening(instruction: str) -> str:
    return " ".join(instruction.lower().split()[:OPENING_WORDS])


@cache
def _forbidden(phrases: tuple[str, ...]) -> re.Pattern[str]:
    return phrase_pattern(phrases)


FORM_RULES: Mapping[str, Callable[[str], object]] = {
    "too_short": lambda text: word_count(text) < MIN_WORDS,
    "too_long": lambda text: word_count(text) > MAX_WORDS,
    "forbidden_word": lambda text: _forbidden(FORBIDDEN_WORDS).search(text),
    "program": lambda text: text.startswith("Write a program"),
    "punctuation_first": lambda text: text[0] in string.punctuation,
    "not_ascii_first": lambda text: not text[0].isascii(),
}
"""Self-Instruct's rules of form, in its order: whether an instruction breaks each, by reason."""


def form_rules(seeds: Iterable[Seed]) -> frozenset[str]:
    """The rules of form that fit the seeds: `not_ascii_first` only where every seed begins with an ASCII character."""
    is_ascii = all(seed.instruction.strip()[0].isascii() for seed in seeds)
    return frozenset(FORM_RULES) - (frozenset() if is_ascii else {"not_ascii_first"})


# --- the pool


class PoolGrowth:
    """Base of the strategies: the tasks admitted so far, and why others were refused. A strategy adds `propose`.

    A candidate is refused for the `fault` in its meta, by one of the `rules` of form, by a forbidden word, by a rule of
    `reject`, or because it is too similar to a seed or an earlier task. `rejected` counts the refused candidates by
    reason, `refused` lists them, and `candidates` counts all. The result depends on the order of `admit` calls.
    """

    def __init__(
        self,
        options: PoolOptions,
        *,
        seeds: Sequence[Seed] = (),
        rules: Collection[str] = ("too_short",),
        seed: int = 0,
    ) -> None:
        self.options = options
        self.seed = seed
        self.seeds = len(seeds)
        self.tasks: list[Task] = []
        self.candidates = 0
        self.rejected: Counter[str] = Counter()
        self.refused: list[Task] = []
        """With provisional ids (`k.item`), the reason in `meta.refused`, and the nearest text in `meta.nearest`."""
        self._rules = frozenset(rules)
        self._requests = 0
        self._openings: Counter[str] = Counter()
        self._on_topic = options.on_topic if isinstance(options, SeededOptions) else None
        self._topic = Topic(seeds) if self._on_topic is not None else None
        self._index = NoveltyIndex(options.rouge_l)
        for each in seeds:
            self._index.add(each.id, each.instruction)

    @property
    def window(self) -> int:
        """Most requests in flight now; depends on the number of requests admitted, never on the machine."""
        return self.options.window or min(MOST_OUTSTANDING, FEWEST_OUTSTANDING + self._requests // FEWEST_OUTSTANDING)

    def random(self, k: object) -> Random:
        """A generator that depends on the recipe's seed and `k` only."""
        return Random(f"{self.seed}:{k}")

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        """Admit and number the candidates of request `k` that no rule refuses; the others are counted."""
        self._requests += 1
        self.candidates += len(tasks)
        return [admitted for task in tasks if (admitted := self._take(task)) is not None]

    def _take(self, task: Task) -> Task | None:
        reason, near = self._refusal(task), None
        if reason is None and (near := self._off_topic(task)) is not None:
            reason = "off_topic"
        if reason is None:
            nearest = self._index.nearest(task.instruction)
            reason = "too_similar" if nearest is not None and self._index.is_near(nearest) else None
            near = nearest._asdict() if nearest is not None else None
        if reason is not None:
            self.rejected[reason] += 1
            self.refused.append(replace(task, meta={**task.meta, "refused": reason, "nearest": near}))
            return None
        admitted = replace(task, id=f"task-{len(self.tasks) + 1:05}", meta={**task.meta, "nearest": near})
        self._index.add(admitted.id, task.instruction)
        self._openings[_opening(task.instruction)] += 1
        self.tasks.append(admitted)
        return admitted

    def _refusal(self, task: Task) -> str | None:
        """Why a task is refused, apart from its similarity to others."""
        if (fault := task.meta.get("fault")) is not None:
            return str(fault)
        if not task.instruction.strip():
            return "empty"
        if (reason := form_fault(task.instruction, self._rules)) is not None:
            return reason
        if _forbidden(self.options.forbidden).search(f"{task.instruction}\n{task.input}"):
            return "forbidden_word"
        return next((rule for rule in self.options.reject if self._breaks(rule, task)), None)

    def _off_topic(self, task: Task) -> Mapping[str, Any] | None:
        """The nearest seed of a task that is off the topic."""
        if self._topic is None or self._on_topic is None:
            return None
        nearest = self._topic.nearest(task.instruction)
        is_far = nearest.similarity < self._on_topic
        return {"id": nearest.id, "similarity": nearest.similarity, "threshold": self._on_topic} if is_far else None

    def _breaks(self, rule: OwnRule, task: Task) -> bool:
        if rule == "common_opening":
            common = max(OPENINGS_FREE, len(self.tasks) // OPENINGS_SHARE)
            return self._openings[_opening(task.instruction)] >= common
        if rule == "needs_input":
            return not task.input and needs_input(task.instruction)
        return is_statement(task.instruction)
