"""Grows tasks from seeds by showing the teacher some of them and letting it continue the list (Wang et al., 2023)."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from distill import prompts, recipe
from distill.errors import SeedsError, StageIncomplete
from distill.novelty import Neighbour, NoveltyIndex, comparable
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Task

ROLE = "teacher"
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
_FORBIDDEN = re.compile(rf"\b({'|'.join(FORBIDDEN_WORDS)})\b", re.IGNORECASE)
_NUMBERED = re.compile(r"\n\s*\d+\s?\. ")

_MATERIAL = (
    "text|passage|paragraph|sentence|sentences|article|story|poem|code|snippet|list|table|email|letter|review|"
    "dialogue|conversation|words|numbers|data|statement|statements|paragraphs|function|program|recipe|essay|document"
)
_NEEDS_INPUT = re.compile(
    rf"\b(the|these) (following|given|provided|below|above)\b|\b(given|provided|following) (a |an |the )?({_MATERIAL})\b"
    rf"|\b(this|these) ({_MATERIAL})\b|\b(provided|given|listed|shown|written) (below|above|here)\b|:$",
    re.IGNORECASE,
)


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
        lines = path.read_text(encoding="utf-8").splitlines()
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

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 0.9
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 0.95
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
    - tasks have no input, so seeds with an empty input are shown where there are enough, and an instruction that
      speaks of a text it does not bring is rejected (`needs_input`);
    - Alpaca's five words are added to the forbidden ones.

    `rejected` (by reason) and `candidates` count what `admit` has seen. Raises `StageIncomplete` when `patience`
    requests in a row brought nothing new.
    """

    class Options(recipe.Options):
        """Options of `expand: {strategy: self_instruct}`."""

        sampling: ExpansionSampling = ExpansionSampling()
        """How expansion requests are drawn."""
        new_tasks: Annotated[int, Field(ge=1, le=100)] = 8
        """Tasks wanted of one request; the list is stopped behind them."""
        window: Annotated[int, Field(ge=1)] | None = None
        """Requests that may be outstanding: request k sees what came of request k - window. Left out: an eighth of the
        tasks, 1 to 32. Part of the result: set it to raise `tasks` later and get the same list, only longer."""
        rouge_l: Annotated[float, Field(gt=0, le=1)] = 0.7
        """Greatest similarity of a new task to any before (Self-Instruct, section 2.2)."""
        needs_input: Literal["reject", "keep"] = "reject"
        """What becomes of an instruction about a text that is not in it, such as "Summarise this paragraph."."""
        ask: Literal["completion", "chat"] = "completion"
        """Let the teacher continue the list as raw text, or, where an endpoint has no completions, ask by chat."""
        patience: Annotated[int, Field(ge=1)] = 50
        """Requests in a row without a new task before the stage gives up."""

    def __init__(self, options: Options, *, seeds: Sequence[Seed], seed: int, target: int) -> None:
        self.options = options
        self.window = options.window or max(1, min(32, target // 8))
        self.candidates = 0
        self.rejected: Counter[str] = Counter()
        self._seed = seed
        self._shown_seeds = _shown_seeds(seeds)
        self._admitted: list[Task] = []
        self._index = NoveltyIndex(options.rouge_l)
        for each in seeds:
            self._index.add(each.id, comparable(each.instruction))
        self._template = prompts.load("strategies/self_instruct.txt")
        self._fruitless = 0

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
        admitted = []
        for task in tasks:
            self.candidates += 1
            tokens = comparable(task.instruction)
            nearest = self._index.nearest(tokens)
            reason = self._fault(task, nearest)
            if reason is not None:
                self.rejected[reason] += 1
                continue
            admitted.append(self._numbered(task, nearest))
            self._index.add(admitted[-1].id, tokens)
            self._admitted.append(admitted[-1])
        self._keep_patience(bool(admitted))
        return admitted

    def _in_context(self, rng: Random) -> list[tuple[str, str]]:
        """Ids and texts of the instructions to show, shuffled."""
        grown = rng.sample(self._admitted, min(SHOWN_GROWN, len(self._admitted)))
        seeds = rng.sample(self._shown_seeds, min(SHOWN - len(grown), len(self._shown_seeds)))
        shown = [(each.id, " ".join(each.instruction.split()).rstrip(":")) for each in (*grown, *seeds)]
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

    def _fault(self, task: Task, nearest: Neighbour | None) -> str | None:
        if task.meta.get("cut"):
            return "cut_off"
        reason = form_fault(task.instruction)
        if reason is None and self.options.needs_input == "reject" and needs_input(task.instruction):
            reason = "needs_input"
        if reason is None and nearest is not None and self._index.is_near(nearest):
            reason = "too_similar"
        return reason

    def _numbered(self, task: Task, nearest: Neighbour | None) -> Task:
        near: Mapping[str, Any] | None = nearest._asdict() if nearest is not None else None
        return Task(f"task-{len(self._admitted) + 1:05}", task.instruction, meta={**task.meta, "nearest": near})

    def _keep_patience(self, fruitful: bool) -> None:
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless >= self.options.patience:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
            raise StageIncomplete(
                f"{self._fruitless} requests in a row brought no new task ({reasons or 'no answer at all'}); "
                f"{len(self._admitted)} tasks so far; ask for fewer, or give more varied seeds"
            )


def _shown_seeds(seeds: Sequence[Seed]) -> list[Seed]:
    """Seeds that need no input, where they fill a request; all of them otherwise."""
    complete = [each for each in seeds if any(not instance.input.strip() for instance in each.instances)]
    return complete if len(complete) >= SHOWN else list(seeds)


def parsed(text: str) -> list[str]:
    """The items of a continued list: split at numbers that begin a line, white space collapsed, first letter raised."""
    pieces = _NUMBERED.split(re.sub(r"^\s*\d+\s?\. ", "", text))
    items = (" ".join(piece.split()) for piece in pieces)
    return [item[0].upper() + item[1:] for item in items if item]


def form_fault(instruction: str) -> str | None:
    """Why the form of an instruction rules it out, or `None` (Self-Instruct's rules, in its order)."""
    count = len(instruction.split())
    if count < MIN_WORDS:
        return "too_short"
    if count > MAX_WORDS:
        return "too_long"
    if _FORBIDDEN.search(instruction):
        return "forbidden_word"
    if instruction.startswith("Write a program"):
        return "program"
    if instruction[0] in string.punctuation:
        return "punctuation_first"
    if not instruction[0].isascii():
        return "not_ascii_first"
    return None


def needs_input(instruction: str) -> bool:
    """Whether an instruction speaks of a text that is not in it."""
    return _NEEDS_INPUT.search(instruction) is not None
