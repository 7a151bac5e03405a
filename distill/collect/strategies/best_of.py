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

from distill import recipe
from distill.collect.sessions import ROLE, TurnOptions, opening, session
from distill.core import assets
from distill.errors import RecipeError
from distill.recipe import Asks
from distill.text.answer_checks import CHECKS, Checking, pattern_fault, vote
from distill.text.judge_replies import GradeScale, read_grade
from distill.text.thinking import Handling, split_answer, split_thoughts
from distill.text.tokens import harmless
from distill.types import Answer, Completion, Failure, Flow, Message, Request, Sampling, Session, Task

JUDGE = "judge"
JUDGING = Sampling(temperature=0.0, max_tokens=256)
"""The judge's sampling where neither the strategy nor the section `judge` sets it."""
_OF_TEN, _WHICH = GradeScale(10), GradeScale(10, ("A", "B", "tie", "reply A", "reply B"))
_ALONE = re.compile(r"[*_\s]*(\d{1,2}(?:\.\d+)?)[*_\s.]*")
_LETTER = re.compile(r"[*_\s\"'(\[]*(a|b|tie)[*_\s\"')\].]*", re.IGNORECASE)
_CLOSING = re.compile(r"(ASKED|REPLIED|REPLY [AB])>>>")
"""Delimiter after a text in the judge's prompts."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled answer."""

    replica: int
    key: str
    text: str
    """The answer as it would stand in a session."""
    plain: str
    """Without thoughts, for the judge."""
    thoughts: str
    truncated: bool
    score: float | None = None
    """Depends on `pick`; `None` where no verdict could be read."""

    def summary(self) -> dict[str, Any]:
        """The entry of a losing candidate in the session's meta."""
        row = {"replica": self.replica, "key": self.key, "text": self.text, "score": self.score}
        return {**row, "truncated": self.truncated, **({"thoughts": self.thoughts} if self.thoughts else {})}


@dataclass(frozen=True, slots=True)
class JudgedCandidates:
    """Candidates with their scores, and the keys of the requests that scored them."""

    candidates: tuple[Candidate, ...]
    keys: tuple[str, ...] = ()
    unparsed: int = 0
    """Judge replies without a verdict, and judge requests that failed permanently."""


class BestOf:
    """Several answers per task, sampled at once; the best becomes the session.

    Whatever picks, a whole answer goes before one that is cut, and of equals the one drawn first. The others are in
    `meta.others` with their scores.
    """

    class Options(TurnOptions):
        """Options of `collect: {strategy: best_of}`."""

        samples: Annotated[int, Field(ge=2, le=64)] = 4
        """Answers drawn for a task; the first is the one that the strategy `answer` would have bought."""
        pick: Literal["judge", "check", "longest", "majority"] = "judge"
        """`judge`: the role `judge` rates them. `check`: the first that agrees with the task's `meta.answer`.
        `longest`: most words. `majority`: one of those whose final answer most others share (self-consistency)."""
        judge: Literal["scores", "pairs"] = "scores"
        """`scores`: each is graded from 1 to 10, one request per sample. `pairs`: each two are compared in both
        orders, samples · (samples - 1) requests; a win in both orders counts 1, a draw or two contrary verdicts ½. It
        takes a model that can judge: of 96 replies of SmolLM2-135M-Instruct none held a verdict."""
        judge_sampling: recipe.SamplingOptions | None = None
        """How the judge is asked; as the section `judge` says, else greedily with at most 256 tokens."""
        check: Checking = "numeric"
        """How an answer is held against `meta.answer`: `numeric` and `exact` compare final answers, `contains` looks
        for the text, `regex` for the pattern (RE2's syntax), anywhere in the answer. Nothing is executed."""
        unsolved: Literal["fail", "keep"] = "fail"
        """What to do with a task when no answer passes the check: a failure (set `collect.max_failed` to what you
        expect), or a session with the label `check_failed`."""

        @property
        def asks(self) -> Asks:
            """The samples, and the judge's requests about them."""
            if self.pick != "judge":
                return Asks(self.samples)
            pairs = self.samples * (self.samples - 1)
            requests, answers_read = (self.samples, self.samples) if self.judge == "scores" else (pairs, 2 * pairs)
            return Asks(self.samples + requests, 130 * requests, answers_read, (JUDGE,))

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()
        if self.sampling.temperature == 0:
            raise RecipeError("best_of: at temperature 0 all samples are the same; set teacher.sampling.temperature")
        judge_sampling = options.judge_sampling
        self._judging = JUDGING if judge_sampling is None else judge_sampling.sampling()

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The session of the best answer, or a failure. `rng` draws the form of the task.

        A transient failure of a sample or of the judge fails the task; a later run replays the answers it has and
        asks for the rest. Samples that fail permanently are left out.
        """
        if self.options.pick == "check" and (fault := self._reference_fault(task)) is not None:
            return fault
        prompt = opening(task, system=self.options.system, form=self.options.input, rng=rng)
        answers: Sequence[Answer] = yield tuple(
            Request(role=ROLE, messages=prompt, sampling=self.sampling, replica=number)
            for number in range(self.options.samples)
        )
        candidates = _candidates(answers, self.options.thoughts)
        if isinstance(candidates, Failure):
            return candidates
        judgement = yield from self._judgement(candidates, prompt[-1].content, task)
        if isinstance(judgement, Failure):
            return judgement
        best = max(  # a whole answer before a cut one, a scored one before one without, then by score
            judgement.candidates, key=lambda each: (not each.truncated, each.score is not None, each.score or 0.0)
        )
        if self.options.pick == "check" and not best.score and self.options.unsolved == "fail":
            detail = f"none of {len(candidates)} answers passes the check ({self.options.check})"
            return Failure(key=best.key, reason="check_failed", detail=detail, transient=False)
        return self._session(task, prompt, best, judgement)

    def _session(self, task: Task, prompt: Sequence[Message], best: Candidate, judgement: JudgedCandidates) -> Session:
        others = [each for each in judgement.candidates if each is not best]
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

    def _judgement(
        self, candidates: tuple[Candidate, ...], question: str, task: Task
    ) -> Flow[JudgedCandidates | Failure]:
        if self.options.pick == "judge":
            ask = self._grade if self.options.judge == "scores" else self._compare
            return (yield from ask(candidates, question))
        if self.options.pick == "check":
            passes = CHECKS[self.options.check]
            reference = str(task.meta["answer"])
            return JudgedCandidates(
                _with_scores(candidates, [float(passes(each.plain, reference)) for each in candidates])
            )
        if self.options.pick == "majority":
            return JudgedCandidates(_with_scores(candidates, _shares(candidates)))
        return JudgedCandidates(_with_scores(candidates, [float(len(each.plain.split())) for each in candidates]))

    def _reference_fault(self, task: Task) -> Failure | None:
        """Why a task cannot be checked; known before any request is sent."""
        reference = task.meta.get("answer")
        detail = None
        if not isinstance(reference, (str, int, float)) or isinstance(reference, bool) or not str(reference).strip():
            detail = "the task has no meta.answer to check against"
        elif self.options.check == "regex":
            detail = pattern_fault(str(reference))
        if detail is None:
            return None
        return Failure(key="", reason="no_reference", detail=detail, transient=False)

    def _grade(self, candidates: tuple[Candidate, ...], question: str) -> Flow[JudgedCandidates | Failure]:
        template = assets.load("strategies/best_of_score.txt")
        replies: Sequence[Answer] = yield tuple(
            self._question(template, question=question, answer=each.plain) for each in candidates
        )
        if (lost := _first_transient(replies)) is not None:
            return lost
        scores = [
            _verdict(reply, score_of, question, each.plain) for reply, each in zip(replies, candidates, strict=True)
        ]
        return JudgedCandidates(_with_scores(candidates, scores), _keys(replies), scores.count(None))

    def _compare(self, candidates: tuple[Candidate, ...], question: str) -> Flow[JudgedCandidates | Failure]:
        template = assets.load("strategies/best_of_pair.txt")
        orders = list(permutations(range(len(candidates)), 2))
        if not orders:
            return JudgedCandidates(candidates)
        replies: Sequence[Answer] = yield tuple(
            self._question(template, question=question, first=candidates[a].plain, second=candidates[b].plain)
            for a, b in orders
        )
        if (lost := _first_transient(replies)) is not None:
            return lost
        texts = (question, *(each.plain for each in candidates))
        verdicts = [_verdict(reply, better_of, *texts) for reply in replies]
        points = _points(dict(zip(orders, verdicts, strict=True)), len(candidates))
        return JudgedCandidates(_with_scores(candidates, points), _keys(replies), verdicts.count(None))

    def _question(self, template: str, **texts: str) -> Request:
        """A question about texts, in which delimiters and control tokens are made harmless."""
        text = assets.fill(template, **{name: _CLOSING.sub(r"\1> >>", harmless(each)) for name, each in texts.items()})
        return Request(role=JUDGE, messages=(Message("user", text),), sampling=self._judging)


def _candidates(answers: Sequence[Answer], handling: Handling) -> tuple[Candidate, ...] | Failure:
    """The candidates, in order; or a transient failure of any, or the first failure where all failed."""
    if (lost := _first_transient(answers)) is not None:
        return lost
    candidates, failures = [], []
    for replica, answer in enumerate(answers):
        reply = answer if isinstance(answer, Failure) else split_answer(answer, handling)
        if isinstance(reply, Failure) or isinstance(answer, Failure):
            failures.append(reply)
            continue
        plain = split_thoughts(answer).answer
        candidates.append(
            Candidate(replica, answer.key, reply.answer, plain, reply.thoughts, answer.finish == "length")
        )
    return tuple(candidates) if candidates else next(failure for failure in failures if isinstance(failure, Failure))


def _first_transient(answers: Sequence[Answer]) -> Failure | None:
    return next((answer for answer in answers if isinstance(answer, Failure) and answer.transient), None)


def _keys(answers: Sequence[Answer]) -> tuple[str, ...]:
    return tuple(answer.key for answer in answers if isinstance(answer, Completion))


def _with_scores(candidates: Sequence[Candidate], scores: Sequence[float | None]) -> tuple[Candidate, ...]:
    return tuple(replace(each, score=score) for each, score in zip(candidates, scores, strict=True))


def _shares(candidates: Sequence[Candidate]) -> list[float]:
    """Share of the votes for each candidate's final answer; cut answers vote only where all are cut."""
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
            settled = wins if wins in (0.0, 1.0) else 0.5
            points[first].append(settled)
            points[second].append(1 - settled)
    return [sum(each) / len(each) if each else None for each in points]


def _verdict(reply: Answer, parse: Callable[..., float | None], *texts: str) -> float | None:
    """The verdict in a judge's reply, without its thoughts; `None` for a failure or a reply cut inside its thoughts."""
    if isinstance(reply, Failure) or reply.finish == "filtered":
        return None
    split = split_thoughts(reply)
    return None if split.is_open else parse(split.answer, *texts)


def score_of(reply: str, *texts: str) -> float | None:
    """The score from 1 to 10 that a judge's reply gives or is; `None` for none, and for one that `texts` have too."""
    score = read_grade(reply, _OF_TEN, texts=texts).score
    if score is None and (match := _ALONE.fullmatch(reply)) is not None:
        score = float(match[1])
    return score if score is not None and 1 <= score <= 10 else None


def better_of(reply: str, *texts: str) -> float | None:
    """The verdict of a reply that compares: 1 for A, 0 for B, ½ for a tie; `None` as for a score."""
    choice = read_grade(reply, _WHICH, texts=texts).choice
    if choice is None and (match := _LETTER.fullmatch(reply)) is not None:
        choice = match[1]
    return None if choice is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[choice.casefold().removeprefix("reply ")]
