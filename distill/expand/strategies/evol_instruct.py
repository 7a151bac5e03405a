"""Evol-Instruct: makes tasks harder or rarer in rounds, and drops failures (Xu et al., 2023, WizardLM)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field

from distill import recipe
from distill.core import assets
from distill.expand import pool
from distill.expand.pool import ExpansionSampling, OwnRule, PoolGrowth, ProposalCost, SeededOptions
from distill.expand.seeds import Seed, seed_text
from distill.text.echoes import instructions, repeats_prompt
from distill.text.thinking import split_thoughts
from distill.text.wrappers import bare, refuses
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Task

Operation: TypeAlias = Literal["constraints", "deepening", "concretizing", "reasoning", "complicate_input", "breadth"]
"""Five in depth and one in breadth (WizardLM, section 3.2)."""
FORMATS = ("a CSV table", "XML", "JSON", "a SQL table with its rows", "Python code", "an HTML page", "a log file")
"""Formats that `complicate_input` may add; one is drawn for each request."""
Criterion: TypeAlias = Literal["equal", "sorry", "no_words", "marker_words"]
SORRY_WORDS = 80
"""An answer that contains "sorry" and has fewer words shows that the teacher cannot do the task."""
MARKER_WORDS = (
    *("original instruction", "rewritten instruction", "revised instruction"),
    *("given prompt", "rewritten prompt", "created prompt"),
)
"""Words of our prompts and of WizardLM's, which models have memorised."""
_STOP_WORDS = """
a about am an and any are as at be been but by can could did do does for from had has have he her here him his how i if
in into is it its just me more my no not of on or our she so some such than that the their them then there these they
this those to too up us very was we were what when where which who why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"\w+")
_EQUAL = re.compile(
    r"(?P<not>\b(?:un|in)|(?:\b(?:not|never|neither)|n['\u2019]t)\b(?:[\s-]+\w+){0,2}?[\s-]+|\b)equal\b", re.IGNORECASE
)
_VERDICT_LINE = re.compile(
    r"\W*(?:(?:my |the |final )*(?:answer|verdict)\W+(?:is\W+)?)?((?:not|un|in)?[\s-]*equal)\W*", re.IGNORECASE
)
LONGEST_VERDICT = 200
"""Characters of a line that can be a verdict."""
JUDGE = "judge"
JUDGING = Sampling(temperature=0.0, max_tokens=8)
"""Default sampling of the judge, whose reply is a word or two."""


class EvolvingSampling(ExpansionSampling):
    """Sampling of evolutions: WizardLM's own temperature."""

    temperature: Annotated[float, Field(ge=0, le=5)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 0.95
    max_tokens: Annotated[int, Field(ge=1)] | None = 1024


class TrialSampling(ExpansionSampling):
    """Sampling of the teacher's trial answer to an evolution."""

    max_tokens: Annotated[int, Field(ge=1)] | None = 512


class EvolInstruct(PoolGrowth):
    """Evol-Instruct: `window` seeds at a time evolve in parallel, each through every round.

    Request k evolves one instruction by an operation drawn for it. Two more requests examine the result: whether it is
    equal to its parent and, if not, how the teacher answers it. An evolution is eliminated, and its parent kept for the
    next round, when it adds nothing (`equal`), when the answer is a short apology (`sorry`) or has only stop words and
    punctuation (`no_words`), or when it copies words or sentences of the prompt (`marker_words`). All others become
    tasks, with the answer in `meta["output"]`. After the last round the next seeds follow, and after the last seed the
    first ones again.

    Differences from the original, and why:
    - the paper takes all seeds through a round before the next; here only as many as the window, so that a run of any
      size has tasks of every round, and a larger one extends it. Each pass takes the seeds in a new random order;
    - the released code has neither the elimination nor `complicate_input`; the latter draws a format in place of the
      paper's worked examples;
    - an unreadable verdict eliminates an evolution (`unjudged`), as do a failed trial answer (`unanswered`) and a
      refusal in place of an instruction (`refusal`);
    - near copies (over ROUGE-L 0.95) are refused; the limit is high because an evolution resembles its parent.

    The teacher must follow instructions: SmolLM2-135M-Instruct yielded 8 tasks in 189 evolutions (303 requests, at
    temperature 0.7), one of them sensible; as the judge it gave a verdict in 11 of 57 replies.
    """

    class Options(SeededOptions):
        """Options of `expand: {strategy: evol_instruct}`."""

        sampling: EvolvingSampling = EvolvingSampling()
        """Sampling of evolutions."""
        answer: TrialSampling = TrialSampling()
        """Sampling of the trial answers by which evolutions are judged."""
        judge_sampling: recipe.SamplingOptions | None = None
        """Sampling of the judge; that of the section `judge`, else greedy with at most 8 tokens. A reasoning judge
        needs room for its thoughts."""
        window: Annotated[int, Field(ge=1)] = 16
        """Instructions that evolve in parallel, and so the most requests in flight. The tasks depend on it."""
        rounds: Annotated[int, Field(ge=1, le=100)] = 4
        """Successive evolutions of one seed."""
        operations: Annotated[tuple[Operation, ...], Field(min_length=1)] = get_args(Operation)
        """Kinds of evolution, five in depth and `breadth`; one is drawn for each request."""
        eliminate: tuple[Criterion, ...] = get_args(Criterion)
        """Criteria of elimination. Without `equal` no comparison is requested, without `sorry` and `no_words` no trial
        answer: each saves one request per task."""
        reject: tuple[OwnRule, ...] = ("statement",)
        rouge_l: Annotated[float, Field(gt=0, le=1)] = 0.95
        """Greatest similarity (ROUGE-L) of a new task to any earlier one, its parent included."""

        @property
        def cost(self) -> ProposalCost:
            """Estimate: an evolution has 20 tokens, and so has its trial answer."""
            compares, answers = "equal" in self.eliminate, bool({"sorry", "no_words"} & set(self.eliminate))
            prompt = 180 + 220 * compares + 80 * answers
            roles = (JUDGE,) if compares else ()
            judging = JUDGING if self.judge_sampling is None else _greedy(self.judge_sampling.sampling())
            further = [*([judging] if compares else []), *([self.answer.sampling()] if answers else [])]
            samplings = (self.sampling.sampling(), *further)
            return ProposalCost(1, prompt, 20 + compares + 20 * answers, len(samplings), roles, samplings)

    options: Options

    def __init__(self, options: Options, *, seeds: Sequence[Seed], seed: int, target: int) -> None:
        self._roots = [Task(each.id, seed_text(each)) for each in seeds]
        super().__init__(options, seeds=[replace(each, instruction=seed_text(each)) for each in seeds], seed=seed)
        judge_sampling = options.judge_sampling
        self._judging = JUDGING if judge_sampling is None else _greedy(judge_sampling.sampling())
        self._order = lru_cache(maxsize=4)(self._drawn_order)
        self._alive: dict[int, Task] = {}
        self._templates = {name: assets.load(f"strategies/evol_{name}.txt") for name in options.operations}
        self._judge = assets.load("strategies/evol_judge.txt")

    def propose(self, k: int) -> Flow[list[Task]]:
        """Evolve one instruction and examine the result; returns one task, with a fault if it is eliminated."""
        place, round = self._turn(k)
        parent = self._alive.get(place) or self._root(place)
        rng = self.random(k)
        operation = rng.choice(self.options.operations)
        sampling = self.options.sampling.sampling()
        reply: Completion | Failure = yield pool.request(self._prompt(parent, operation, rng), k, sampling)
        if isinstance(reply, Failure):
            return []
        meta = pool.origin("evol_instruct", k, reply, [*parent.meta.get("lineage", ()), parent.id])
        meta |= {"parent": parent.id, "operation": operation, "round": round + 1}
        task = Task(f"{k}.0", bare(split_thoughts(reply, parent.instruction).answer), meta=meta)
        if (reason := self._fault(task.instruction, operation, is_cut=reply.finish == "length")) is not None:
            return [pool.with_fault(task, reason)]
        return [(yield from self._examine(task, parent, k))]

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        """Admit the task if it passes every rule; it then replaces its parent in the next round."""
        admitted = super().admit(k, tasks)
        place, round = self._turn(k)
        if round + 1 == self.options.rounds:
            self._alive.pop(place, None)
        elif admitted:
            self._alive[place] = admitted[-1]
        return admitted

    def _turn(self, k: int) -> tuple[int, int]:
        """Which instruction request k evolves (0, 1, … over all passes), and in which round (from 0)."""
        group, within = divmod(k, self.window * self.options.rounds)
        round, place = divmod(within, self.window)
        return group * self.window + place, round

    def _root(self, place: int) -> Task:
        """The seed at a place in the sequence of passes, each of which has all seeds in a random order of its own."""
        turn, index = divmod(place, len(self._roots))
        return self._order(turn)[index]

    def _drawn_order(self, turn: int) -> list[Task]:
        return self.random(f"order:{turn}").sample(self._roots, len(self._roots))

    def _prompt(self, parent: Task, operation: Operation, rng: Random) -> str:
        format = {"format": rng.choice(FORMATS)} if operation == "complicate_input" else {}
        return assets.fill(self._templates[operation], instruction=parent.instruction, **format)

    def _fault(self, text: str, operation: Operation, *, is_cut: bool) -> str | None:
        """Why an evolution is eliminated before it is examined."""
        if is_cut:
            return "cut_off"
        copies = has_marker_words(text) or repeats_prompt(text, instructions(self._templates[operation]))
        if copies and "marker_words" in self.options.eliminate:
            return "marker_words"
        if refuses(text):
            return "refusal"
        return None if text else "empty"

    def _examine(self, task: Task, parent: Task, k: int) -> Flow[Task]:
        """Compare the task with its parent, and have it answered if it differs."""
        criteria = set(self.options.eliminate)
        if "equal" in criteria:
            question = assets.fill(self._judge, first=parent.instruction, second=task.instruction)
            reply: Completion | Failure = yield Request(
                role=JUDGE, messages=(Message("user", question),), sampling=self._judging, replica=k
            )
            text = "" if isinstance(reply, Failure) else split_thoughts(reply).answer
            if (reason := verdict(text)) is not None:
                return pool.with_fault(task, reason)
        if criteria & {"sorry", "no_words"}:
            answer: Completion | Failure = yield pool.request(task.instruction, k, self.options.answer.sampling())
            if isinstance(answer, Failure):
                return pool.with_fault(task, "unanswered")
            trial = split_thoughts(answer, task.instruction)
            if not trial.is_open and (reason := answer_fault(trial.answer)) in criteria:
                return pool.with_fault(task, str(reason))
            if answer.finish != "length":
                return replace(task, meta={**task.meta, "output": trial.answer})
        return task


def _greedy(sampling: Sampling) -> Sampling:
    """The sampling with the temperature and `max_tokens` of `JUDGING` where it sets none."""
    temperature = JUDGING.temperature if sampling.temperature is None else sampling.temperature
    return replace(sampling, temperature=temperature, max_tokens=sampling.max_tokens or JUDGING.max_tokens)


def has_marker_words(text: str) -> bool:
    """Whether a text contains words of the prompt."""
    lower = " ".join(text.lower().replace("#", " ").split())
    return any(words in lower for words in MARKER_WORDS)


def verdict(text: str) -> str | None:
    """`equal`, `None` for unequal, or `unjudged` where the judge says neither or both.

    The last line that is only a verdict counts; where there is none, the whole reply.
    """
    lines = [line for line in text.splitlines() if len(line) <= LONGEST_VERDICT]
    verdict_lines = [match for line in lines if (match := _VERDICT_LINE.fullmatch(line)) is not None]
    reply = verdict_lines[-1][1] if verdict_lines else text
    opinions = {not match["not"] for match in _EQUAL.finditer(reply)}
    if len(opinions) != 1:
        return "unjudged"
    return "equal" if opinions.pop() else None


def answer_fault(text: str) -> str | None:
    """`sorry` or `no_words` where the answer shows that the task is unusable, else `None` (WizardLM, section 3.2)."""
    words = [word.lower() for word in _WORD.findall(text)]
    if "sorry" in words and len(text.split()) < SORRY_WORDS:
        return "sorry"
    return "no_words" if all(word in STOP_WORDS for word in words) else None
