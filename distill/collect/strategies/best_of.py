"""Best-of-n: samples several answers per task and keeps the best; the others remain for preference pairs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field

from distill.collect.sessions import ROLE, TurnOptions, opening, session
from distill.core import assets
from distill.errors import RecipeError
from distill.recipe import Asks, CheckOptions, SamplingOptions
from distill.text import references
from distill.text.answer_checks import vote
from distill.text.judge_replies import GradeScale, read_grade
from distill.text.thinking import Handling, split_answer, split_thoughts
from distill.text.tokens import harmless
from distill.types import Answer, Completion, Failure, Flow, Message, Request, Sampling, Session, Task

JUDGE = "judge"
JUDGING = Sampling(temperature=0.0, max_tokens=256)
"""The judge's sampling when neither the strategy nor the section `judge` sets it."""
_OF_TEN, _WHICH = GradeScale(10), GradeScale(10, ("A", "B", "tie", "reply A", "reply B"))
_ALONE = re.compile(r"[*_\s]*(\d{1,2}(?:\.\d+)?)[*_\s.]*")
_LETTER = re.compile(r"[*_\s\"'(\[]*(a|b|tie)[*_\s\"')\].]*", re.IGNORECASE)
_CLOSING = re.compile(r"(ASKED|REPLIED|REPLY [AB])>>>")
"""The delimiter at the end of a text in the judge's prompts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled answer."""

    replica: int
    key: str
    text: str
    """The answer as a session would have it."""
    plain: str
    """The answer without thoughts, for the judge."""
    thoughts: str
    truncated: bool
    score: float | None = None
    """Its meaning depends on `pick`; `None` where no verdict could be read."""

    def summary(self) -> dict[str, Any]:
        """The entry of a losing candidate in the session's meta."""
        row = {"replica": self.replica, "key": self.key, "text": self.text, "score": self.score}
        return {**row, "truncated": self.truncated, **({"thoughts": self.thoughts} if self.thoughts else {})}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The candidates' scores, and the keys of the requests that produced them."""

    scores: Sequence[float | None]
    """One per candidate; `None` where no verdict could be read."""
    keys: tuple[str, ...] = ()
    unparsed: int = 0
    """Judge replies without a verdict, and judge requests that failed permanently."""


class BestOf:
    """Several answers per task, sampled in parallel; the best becomes the session.

    For any `pick`, complete answers are preferred to truncated ones, and the first sample among equals. The others are
    in `meta.others` with their scores.
    """

    class Options(TurnOptions, CheckOptions):
        """Options of `collect: {strategy: best_of}`."""

        samples: Annotated[int, Field(ge=2, le=64)] = 4
        """Answers sampled per task; the first is the one that the strategy `answer` would request."""
        pick: Literal["judge", "check", "longest", "majority"] = "judge"
        """`judge`: the best by the ratings of the role `judge`. `check`: the first that agrees with the task's
        `reference`. `longest`: the one with most words. `majority`: the first with the most frequent final answer
        (self-consistency)."""
        judge: Literal["scores", "pairs"] = "scores"
        """`scores`: each sample is graded from 1 to 10, in one request. `pairs`: each two are compared in both orders,
        samples · (samples - 1) requests; a win in both orders counts 1, a draw or two contrary verdicts ½. The judge
        must be able to judge: none of 96 replies of SmolLM2-135M-Instruct contained a verdict."""
        judge_sampling: SamplingOptions | None = None
        """Sampling of the judge; that of the section `judge`, else greedy with at most 256 tokens."""

        unsolved: Literal["fail", "keep"] = "fail"
        """Result of a task without an answer that passes the check: a failure (set `collect.max_failed` to the share
        you expect), or a session with the label `check_failed`."""

        @property
        def asks(self) -> Asks:
            """The samples, and the judge's requests about them."""
            if self.pick != "judge":
                return Asks(self.samples)
            pairs = self.samples * (self.samples - 1)
            requests, answers_read = (self.samples, self.samples) if self.judge == "scores" else (pairs, 2 * pairs)
            judging = JUDGING if self.judge_sampling is None else self.judge_sampling.sampling()
            return Asks(self.samples + requests, 130 * requests, answers_read, (JUDGE,), (judging,))

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()
        if self.sampling.temperature == 0:
            raise RecipeError("best_of: at temperature 0 all samples are the same; set teacher.sampling.temperature")
        judge_sampling = options.judge_sampling
        self._judging = JUDGING if judge_sampling is None else judge_sampling.sampling()

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of the best answer, or a failure. `rng` draws the form of the task.

        A transient failure of a sample or of the judge fails the task; a later run replays the existing answers and
        requests the rest. Samples that fail permanently are left out.
        """
        check = self.options.default_check
        if self.options.pick == "check" and (fault := references.fault(task.meta, check)) is not None:
            return Failure(key="", reason="no_reference", detail=fault, transient=False)
        prompt = opening(task, system=self.options.system, form=self.options.input, rng=rng)
        answers: Sequence[Answer] = yield tuple(
            Request(role=ROLE, messages=prompt, sampling=self.sampling, replica=number)
            for number in range(self.options.samples)
        )
        candidates = _candidates(answers, self.options.thoughts, prompt)
        if isinstance(candidates, Failure):
            return candidates
        judgement = yield from self._judgement(candidates, prompt[-1].content, task)
        if isinstance(judgement, Failure):
            return judgement
        candidates = [replace(each, score=score) for each, score in zip(candidates, judgement.scores, strict=True)]
        best = max(  # complete before truncated, scored before unscored, then by score
            candidates, key=lambda each: (not each.truncated, each.score is not None, each.score or 0.0)
        )
        if self.options.pick == "check" and not best.score and self.options.unsolved == "fail":
            detail = f"none of {len(candidates)} answers agrees with the reference"
            return Failure(key=best.key, reason="check_failed", detail=detail, transient=False)
        others = [each for each in candidates if each is not best]
        return self._session(task, prompt, best, others, judgement)

    def _session(
        self, task: Task, prompt: Sequence[Message], best: Candidate, others: Sequence[Candidate], judgement: Judgement
    ) -> Session:
        return session(
            task,
            (*prompt, Message("assistant", best.text)),
            strategy="best_of",
            keys=[best.key, *(each.key for each in others), *judgement.keys],
            truncated=best.truncated,
            labels=self._labels(best),
            pick=self.options.pick,
            replica=best.replica,
            score=best.score,
            thoughts=best.thoughts,
            unparsed=judgement.unparsed or None,
            others=[each.summary() for each in others],
        )

    def _labels(self, best: Candidate) -> list[str]:
        if self.options.pick == "check" and not best.score:
            return ["check_failed"]
        return ["unjudged"] if best.score is None else []

    def _judgement(self, candidates: Sequence[Candidate], question: str, task: Task) -> Flow[Judgement | Failure]:
        texts = [each.plain for each in candidates]
        if self.options.pick == "judge":
            ask = self._grade if self.options.judge == "scores" else self._compare
            return (yield from ask(question, texts))
        if self.options.pick == "check":
            reference = references.read(task.meta, self.options.default_check)
            return Judgement([float(reference is not None and reference.passes(text)) for text in texts])
        if self.options.pick == "majority":
            return Judgement(_shares(candidates))
        return Judgement([float(len(text.split())) for text in texts])

    def _grade(self, question: str, texts: Sequence[str]) -> Flow[Judgement | Failure]:
        requests = [self._question("best_of_score", question=question, answer=text) for text in texts]
        replies: Sequence[Answer] = yield tuple(requests)
        if (lost := _first_transient(replies)) is not None:
            return lost
        scores = [_verdict(reply, score_of, question, text) for reply, text in zip(replies, texts, strict=True)]
        return Judgement(scores, _keys(replies), scores.count(None))

    def _compare(self, question: str, texts: Sequence[str]) -> Flow[Judgement | Failure]:
        orders = list(permutations(range(len(texts)), 2))
        if not orders:
            return Judgement([None] * len(texts))
        replies: Sequence[Answer] = yield tuple(
            self._question("best_of_pair", question=question, first=texts[a], second=texts[b]) for a, b in orders
        )
        if (lost := _first_transient(replies)) is not None:
            return lost
        verdicts = [_verdict(reply, better_of, question, *texts) for reply in replies]
        points = _points(dict(zip(orders, verdicts, strict=True)), len(texts))
        return Judgement(points, _keys(replies), verdicts.count(None))

    def _question(self, template: str, **texts: str) -> Request:
        """A question about texts, in which delimiters and control tokens are made harmless."""
        plain = {name: _CLOSING.sub(r"\1> >>", harmless(each)) for name, each in texts.items()}
        text = assets.fill(assets.load(f"strategies/{template}.txt"), **plain)
        return Request(role=JUDGE, messages=(Message("user", text),), sampling=self._judging)


def _candidates(answers: Sequence[Answer], handling: Handling, prompt: Sequence[Message]) -> list[Candidate] | Failure:
    """The candidates, in order; or the first transient failure, or the first failure where all samples failed."""
    if (lost := _first_transient(answers)) is not None:
        return lost
    candidates: list[Candidate] = []
    failures: list[Failure] = []
    for replica, answer in enumerate(answers):
        reply = answer if isinstance(answer, Failure) else split_answer(answer, handling, prompt)
        if isinstance(reply, Failure) or isinstance(answer, Failure):
            failures += [reply] if isinstance(reply, Failure) else []
            continue
        plain, is_cut = split_thoughts(answer, prompt).answer, answer.finish == "length"
        candidates.append(Candidate(replica, answer.key, reply.answer, plain, reply.thoughts, is_cut))
    return candidates or failures[0]


def _first_transient(answers: Sequence[Answer]) -> Failure | None:
    return next((answer for answer in answers if isinstance(answer, Failure) and answer.transient), None)


def _keys(answers: Sequence[Answer]) -> tuple[str, ...]:
    return tuple(answer.key for answer in answers if isinstance(answer, Completion))


def _shares(candidates: Sequence[Candidate]) -> list[float]:
    """Share of the votes for each candidate's final answer; truncated answers vote only if all are truncated."""
    votes = [vote(each.plain) for each in candidates]
    voting = [one for one, each in zip(votes, candidates, strict=True) if one and not each.truncated] or votes
    counts = Counter(one for one in voting if one)
    return [counts[one] / len(voting) for one in votes]


def _points(verdicts: Mapping[tuple[int, int], float | None], count: int) -> list[float | None]:
    """Mean points of each candidate over the pairs with a verdict in both orders."""
    points: list[list[float]] = [[] for _ in range(count)]
    for (first, second), verdict in verdicts.items():
        other = verdicts[second, first]
        if first < second and verdict is not None and other is not None:
            wins = (verdict + (1 - other)) / 2
            points_of_first = wins if wins in (0.0, 1.0) else 0.5
            points[first].append(points_of_first)
            points[second].append(1 - points_of_first)
    return [sum(each) / len(each) if each else None for each in points]


def _verdict(reply: Answer, parse: Callable[..., float | None], *texts: str) -> float | None:
    """The verdict in a judge's reply after its thoughts; `None` for a failure, or a reply that ends within thoughts."""
    if isinstance(reply, Failure) or reply.finish == "filtered":
        return None
    split = split_thoughts(reply)
    return None if split.is_open else parse(split.answer, *texts)


def score_of(reply: str, *texts: str) -> float | None:
    """The score from 1 to 10 in a judge's reply; `None` where there is none, or one that also stands in `texts`."""
    score = read_grade(reply, _OF_TEN, texts=texts).score
    if score is None and (match := _ALONE.fullmatch(reply)) is not None:
        score = float(match[1])
    return score if score is not None and 1 <= score <= 10 else None


def better_of(reply: str, *texts: str) -> float | None:
    """The verdict of a comparing reply: 1 for A, 0 for B, ½ for a tie; `None` as in `score_of`."""
    choice = read_grade(reply, _WHICH, texts=texts).choice
    if choice is None and (match := _LETTER.fullmatch(reply)) is not None:
        choice = match[1]
    return None if choice is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[choice.casefold().removeprefix("reply ")]
