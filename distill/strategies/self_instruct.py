"""Grows tasks from seeds by showing the teacher some of them and letting it continue the list (Wang et al., 2023)."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from distill import prompts, recipe
from distill.errors import SeedsError
from distill.novelty import Neighbour, NoveltyIndex, comparable
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Task

ROLE = "teacher"
PROMPTS = {
    "completion": "strategies/self_instruct.txt",
    "chatml": "strategies/self_instruct_chatml.txt",
    "chat": "strategies/self_instruct.txt",
}
SHOWN = 8
"""Instructions in context (Self-Instruct, section 2.2)."""
SHOWN_GROWN = 2
"""Of these at most so many are the teacher's own."""
MIN_WORDS = 4
MAX_WORDS = 150
"""Bounds of an instruction, in words (Self-Instruct's code: more than 3, at most 150)."""

FORBIDDEN_WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
"""What a model that only writes cannot do: Self-Instruct's list, then Alpaca's five."""
_NUMBERED = re.compile(r"(?:^|\n)\s*(?:\d+\s?\.(?:\s+|$))+")

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
_BRINGS_TEXT = re.compile(r":\s*\S|[\"\u201c][^\"\u201d]+[\"\u201d]")
_SUBJECTS = (
    "I|I'm|I\u2019m|I've|You|You're|My|Your|We|Our|He|His|She|Her|They|It|It's|There|This|That|These|Those|The|An?"
)
_ASKING = "(?:I|You|We) (?:need|want|would like|must|should)"
_TELLS = re.compile(rf"(?!{_ASKING}\b)(?:{_SUBJECTS}|Don't|Don\u2019t|\d[\d.,]*)\s")
_CLAUSE_FIRST = re.compile(
    rf"(?:If|When|In|On|At) [^,]+, (?:{_SUBJECTS})\s|If (?:there|the|it|you|I) [^,]+$", re.IGNORECASE
)
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


OwnRule: TypeAlias = Literal["needs_input", "statement", "common_opening"]
OPENING_WORDS = 3
"""By how many of its first words an opening is told."""
OPENINGS_FREE, OPENINGS_SHARE = 8, 8
"""An opening is common when it begins so many tasks, and one in so many of all."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One worked example of a seed."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Seed:
    """One hand-written task, in Self-Instruct's format; keys beyond these are ignored."""

    id: str
    name: str
    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool


_SEED: TypeAdapter[Seed] = TypeAdapter(Seed)


def load_seeds(path: Path) -> list[Seed]:
    """The seeds of a JSONL file. Raises `SeedsError` with file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SeedsError(f"cannot read the seeds {path}: {error}; expected a UTF-8 file of JSON lines") from error
    seeds = [_seed(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not seeds:
        raise SeedsError(f"{path} has no seed; expected one JSON object a line, such as those of seeds/general.jsonl")
    return seeds


def _seed(line: str, where: str) -> Seed:
    try:
        seed = _SEED.validate_python(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the line"
        raise SeedsError(f"{where}: `{key}`: {first['msg'].lower()}; {_EXPECTED}") from error
    except ValueError as error:
        raise SeedsError(f"{where}: not JSON ({error}); {_EXPECTED}") from error
    if not seed.instruction.strip():
        raise SeedsError(f"{where}: `instruction` is empty; {_EXPECTED}")
    return seed


_EXPECTED = "expected the keys id, name, instruction, instances (each with input and output) and is_classification"


class ExpansionSampling(recipe.SamplingOptions):
    """How expansion requests are drawn; the teacher's own sampling is for its answers."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 0.9
    max_tokens: Annotated[int, Field(ge=1)] | None = 200


class SelfInstruct:
    """Self-Instruct's bootstrap loop as a `Growth`: the same tasks at any concurrency, and after any interruption.

    Each request shows 8 instructions, of which up to 2 are the teacher's own (8 + 0 while there are none), shuffled and
    numbered, and lets the teacher go on at 9. What it writes is split at the numbers, filtered by form, and admitted
    when its ROUGE-L with every seed and every task before is at most 0.7, in order of request and item.

    Where this differs from the original, and why:
    - of an answer cut at `max_tokens` only the last item is dropped, as it alone may be cut; the original drops all;
    - numbers end an answer only at the start of a line: its bare stop string "16." cuts "in 2016." too;
    - the first letter is made upper case; `str.capitalize` would also lower-case every name behind it;
    - tasks have no input, so seeds with an empty input are shown where there are enough, and rules of form are added,
      each of which can be switched off (option `reject`);
    - Alpaca's five words are added to the forbidden ones.

    `rejected` (by reason) and `candidates` count what `admit` has seen.
    """

    class Options(recipe.Options):
        """Options of `expand: {strategy: self_instruct}`."""

        sampling: ExpansionSampling = ExpansionSampling()
        """How expansion requests are drawn."""
        new_tasks: Annotated[int, Field(ge=1, le=100)] = 6
        """Tasks wanted of one request; the list is stopped behind them."""
        window: Annotated[int, Field(ge=1)] | None = None
        """Requests that may be outstanding: request k sees what came of request k - window. Left out: an eighth of the
        tasks, 1 to 32. Part of the result: set it to raise `tasks` later and get the same list, only longer."""
        rouge_l: Annotated[float, Field(gt=0, le=1)] = 0.7
        """Greatest similarity of a new task to any before (Self-Instruct, section 2.2)."""
        reject: tuple[OwnRule, ...] = ("needs_input", "statement", "common_opening")
        """Rules of ours beside the original's: `needs_input` for an instruction about a text that is not in it
        ("Summarise this paragraph."), `statement` for one that asks nothing ("The sky is blue."), `common_opening` for
        one whose first three words open an eighth of the tasks before it (at least 8). Of 999 Alpaca tasks the first
        rejects 203 of 412 that come with an input and 8 of 587 that do not, the second 2. Without the third,
        SmolLM2-135M-Instruct began 31 of 112 tasks with "What is the", with it 13, for 43 requests in place of 28."""
        forbidden: tuple[str, ...] = ()
        """Words or phrases that no task may have, beside the original's (`FORBIDDEN_WORDS`); case is ignored."""
        ask: Literal["completion", "chatml", "chat"] = "completion"
        """`completion`: let the teacher continue the list as raw text. `chatml`: the same inside an answer that it has
        begun, for teachers whose chat template is ChatML and whose endpoint has completions; SmolLM2-135M-Instruct
        wrote 58 usable tasks in 14 requests so, against 43. `chat`: as a plain message, for other endpoints."""

    def __init__(self, options: Options, *, seeds: Sequence[Seed], seed: int, target: int) -> None:
        self.options = options
        self.seeds = len(seeds)
        self.window = options.window or max(1, min(32, target // 8))
        self.candidates = 0
        self.rejected: Counter[str] = Counter()
        self._seed = seed
        self._shown_seeds = _shown_seeds(seeds)
        self._admitted: list[Task] = []
        self._openings: Counter[str] = Counter()
        self._forbidden = _any_of(options.forbidden) if options.forbidden else None
        self._index = NoveltyIndex(options.rouge_l)
        for each in seeds:
            self._index.add(each.id, comparable(each.instruction))
        self._template = prompts.load(PROMPTS[options.ask])

    def propose(self, k: int) -> Flow[list[Task]]:
        """Ask for a continuation of the list; returns its items as they stand, unfiltered, or nothing on a failure.

        The ids of proposals (`k.item`) are provisional; `admit` numbers what it takes.
        """
        shown = self._in_context(Random(f"{self._seed}:{k}"))
        answer: Completion | Failure = yield self._request([text for _, text in shown], k)
        if isinstance(answer, Failure):
            return []
        meta = {"strategy": "self_instruct", "request": k, "replica": k, "lineage": [id for id, _ in shown]}
        meta["key"] = answer.key
        items = parsed(answer.text)
        cut = len(items) - 1 if answer.finish == "length" else None
        return [
            Task(f"{k}.{number}", item, meta=meta | ({"cut": True} if number == cut else {}))
            for number, item in enumerate(items)
        ]

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        """Take those that pass every rule; each that does not is counted in `rejected` by its reason."""
        self.candidates += len(tasks)
        return [admitted for task in tasks if (admitted := self._take(task)) is not None]

    def _take(self, task: Task) -> Task | None:
        tokens = comparable(task.instruction)
        reason, nearest = self._fault(task), None
        if reason is None:
            nearest = self._index.nearest(tokens)
            reason = "too_similar" if nearest is not None and self._index.is_near(nearest) else None
        if reason is not None:
            self.rejected[reason] += 1
            return None
        admitted = self._numbered(task, nearest)
        self._index.add(admitted.id, tokens)
        self._openings[_opening(task.instruction)] += 1
        self._admitted.append(admitted)
        return admitted

    def _in_context(self, rng: Random) -> list[tuple[str, str]]:
        """Ids and texts of the instructions to show, shuffled."""
        grown = rng.sample(self._admitted, min(SHOWN_GROWN, len(self._admitted)))
        seeds = rng.sample(self._shown_seeds, min(SHOWN - len(grown), len(self._shown_seeds)))
        chosen = [(task.id, task.instruction) for task in grown] + [(seed.id, seed.instruction) for seed in seeds]
        shown = [(id, " ".join(text.split()).rstrip(":")) for id, text in chosen]
        rng.shuffle(shown)
        return shown

    def _request(self, shown: Sequence[str], k: int) -> Request:
        examples = "\n".join(f"{number}. {text}" for number, text in enumerate(shown, start=1))
        text = prompts.fill(self._template, examples=examples, next=str(len(shown) + 1))
        chosen = self.options.sampling.sampling()
        behind = f"\n{len(shown) + self.options.new_tasks + 1}."
        sampling = Sampling(
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            max_tokens=chosen.max_tokens,
            stop=(*chosen.stop, behind),
            presence_penalty=chosen.presence_penalty,
            frequency_penalty=chosen.frequency_penalty,
        )
        if self.options.ask == "chat":
            return Request(role=ROLE, messages=(Message("user", text),), sampling=sampling, replica=k)
        return Request(role=ROLE, prompt=text, sampling=sampling, replica=k)

    def _fault(self, task: Task) -> str | None:
        """Why its form rules a task out, or that it begins like too many."""
        if task.meta.get("cut"):
            return "cut_off"
        if (reason := form_fault(task.instruction)) is not None:
            return reason
        if self._forbidden is not None and self._forbidden.search(task.instruction):
            return "forbidden_word"
        return next((rule for rule in self.options.reject if self._breaks(rule, task.instruction)), None)

    def _breaks(self, rule: OwnRule, instruction: str) -> bool:
        if rule == "common_opening":
            most = max(OPENINGS_FREE, len(self._admitted) // OPENINGS_SHARE)
            return self._openings[_opening(instruction)] >= most
        return needs_input(instruction) if rule == "needs_input" else is_statement(instruction)

    def _numbered(self, task: Task, nearest: Neighbour | None) -> Task:
        near: Mapping[str, Any] | None = nearest._asdict() if nearest is not None else None
        return Task(f"task-{len(self._admitted) + 1:05}", task.instruction, meta={**task.meta, "nearest": near})


def _shown_seeds(seeds: Sequence[Seed]) -> list[Seed]:
    """Seeds that need no input, where they fill a request; all of them otherwise."""
    complete = [seed for seed in seeds if any(not instance.input.strip() for instance in seed.instances)]
    return complete if len(complete) >= SHOWN else list(seeds)


def parsed(text: str) -> list[str]:
    """The items of a continued list, split at numbers that begin a line.

    An item ends at a blank line, has its white space collapsed and its first letter raised.
    """
    paragraphs = (piece.strip().split("\n\n")[0] for piece in _NUMBERED.split(text))
    items = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return [item[0].upper() + item[1:] for item in items if item]


def form_fault(instruction: str) -> str | None:
    """Why the form of an instruction rules it out, or `None`: Self-Instruct's rules, in its order."""
    return next((reason for reason, applies in _FORM_RULES if applies(instruction)), None)


def needs_input(instruction: str) -> bool:
    """Whether it speaks of a text that stands neither behind a colon nor in quotation marks."""
    return _NEEDS_INPUT.search(instruction) is not None and _BRINGS_TEXT.search(instruction) is None


def is_statement(instruction: str) -> bool:
    """Whether every sentence tells something: none asks, and each begins with its subject or a clause before it."""
    sentences = _SENTENCES.split(instruction)
    return "?" not in instruction and all(_TELLS.match(each) or _CLAUSE_FIRST.match(each) for each in sentences)


def _opening(instruction: str) -> str:
    return " ".join(instruction.lower().split()[:OPENING_WORDS])


def _any_of(phrases: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})\b", re.IGNORECASE)


_FORM_RULES: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("too_short", lambda text: len(text.split()) < MIN_WORDS),
    ("too_long", lambda text: len(text.split()) > MAX_WORDS),
    ("forbidden_word", _any_of(FORBIDDEN_WORDS).search),
    ("program", lambda text: text.startswith("Write a program")),
    ("punctuation_first", lambda text: text[0] in string.punctuation),
    ("not_ascii_first", lambda text: not text[0].isascii()),
)
