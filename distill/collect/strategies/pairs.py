"""Preference pairs: the teacher's answer and a weaker model's to the same task, the better one chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from distill.collect.sessions import ROLE, TurnOptions, one_turn, opening
from distill.core.assets import fill, load
from distill.core.hashing import unused_tag
from distill.recipe import Asks, SamplingOptions
from distill.text.judge_replies import between_tags
from distill.text.verdicts import UNPARSED, read_verdict
from distill.types import Answer, Completion, Failure, Flow, Message, Pair, Request, Sampling, Session, Task

JUDGE, WEAKER = "judge", "weaker"
JUDGING = Sampling(temperature=0.0, max_tokens=512)
"""The judge's sampling when neither the strategy nor the section `judge` sets it."""
ORDERS = ((0, 1), (1, 0))


class Pairs:
    """The role `weaker` answers each task beside the teacher; the preferred answer becomes the session's.

    With the student so far as the weaker model, its own answers are rejected for the teacher's (Chen et al., 2024,
    SPIN, arXiv 2401.01335); with two models of unlike strength the pairs teach their difference (Geng et al., 2025,
    delta learning, arXiv 2507.06187). A judge decides instead with `prefer: judge` (AI feedback): asked in both orders,
    and where it contradicts itself, calls a tie or cannot be read, the row holds the teacher's answer alone, with the
    reason in `meta.undecided`. Equal answers are not judged.
    """

    class Options(TurnOptions):
        """Options of `collect: {strategy: pairs}`."""

        prefer: Literal["teacher", "judge"] = "teacher"
        """Whose answer is the chosen one: always the teacher's, or that which the role `judge` prefers in both orders
        (of a judge that is the teacher itself, be wary)."""
        criteria: tuple[str, ...] = ()
        """The judge's criteria, the most important first; the five in prompts/judges when left out."""
        weaker_sampling: SamplingOptions | None = None
        """Sampling of the weaker model; that of the section `weaker`, else that of the teacher's answers."""
        judge_sampling: SamplingOptions | None = None
        """Sampling of the judge; that of the section `judge`, else greedy with at most 512 tokens."""

        @property
        def asks(self) -> Asks:
            """Both answers and, with a judge, two questions about them."""
            samplings = () if self.weaker_sampling is None else (self.weaker_sampling.sampling(),)
            if self.prefer == "teacher":
                return Asks(2, roles=(WEAKER,), samplings=samplings)
            judging = JUDGING if self.judge_sampling is None else self.judge_sampling.sampling()
            return Asks(4, 700, 4, (WEAKER, JUDGE), (*samplings, judging))

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()
        weaker, judging = options.weaker_sampling, options.judge_sampling
        self._weaker = self.sampling if weaker is None else weaker.sampling()
        self._judging = JUDGING if judging is None else judging.sampling()

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The pair of a task, its session alone where no answer is preferred, or the failure of either answer."""
        prompt = opening(task, system=self.options.system, form=self.options.input, rng=rng)
        asked = ((ROLE, self.sampling), (WEAKER, self._weaker))
        answers: Sequence[Answer] = yield tuple(
            Request(role=role, messages=prompt, sampling=sampling) for role, sampling in asked
        )
        sides: list[Session] = []
        for answer in answers:
            side = one_turn(task, prompt, answer, strategy="pairs", handling=self.options.thoughts)
            if isinstance(side, Failure):
                return side
            sides.append(side)
        texts = [side.messages[-1].content for side in sides]
        if self.options.prefer == "teacher" or texts[0].split() == texts[1].split():
            return _pair(sides, chosen=0)
        replies: Sequence[Answer] = yield tuple(self._questions(prompt, texts))
        if (lost := next((one for one in replies if isinstance(one, Failure) and one.transient), None)) is not None:
            return lost
        return _judged(
            sides, [_winner(reply, order, prompt, texts) for reply, order in zip(replies, ORDERS, strict=True)], replies
        )

    def _questions(self, prompt: Sequence[Message], texts: Sequence[str]) -> Iterator[Request]:
        """One question in each order of the two answers."""
        criteria = "\n".join(f"- {line}" for line in self.options.criteria or load("judges/quality.txt").splitlines())
        names, tag = {"system": "instructions", "user": "request"}, _tag(prompt, texts)
        before = [(names[message.role], message.content) for message in prompt]
        for order in ORDERS:
            parts = [*before, *zip("AB", (texts[side] for side in order), strict=True)]
            text = fill(load("judges/pairwise.txt"), tag=tag, criteria=criteria, material=between_tags(parts, tag))
            yield Request(role=JUDGE, messages=(Message("user", text),), sampling=self._judging)


def _tag(prompt: Sequence[Message], texts: Sequence[str]) -> str:
    return unused_tag("\n".join((*(message.content for message in prompt), *texts)))


def _winner(reply: Answer, order: tuple[int, int], prompt: Sequence[Message], texts: Sequence[str]) -> int | str:
    """The preferred side, 0 for the teacher's; `tie`, or `unparsed` for a failure and an unreadable reply."""
    if isinstance(reply, Failure):
        return UNPARSED
    judged = [*(message.content for message in prompt), *texts]
    place, _ = read_verdict(reply.text, texts=judged, tag=_tag(prompt, texts), is_cut=reply.finish == "length")
    return dict(zip("AB", order, strict=True)).get(place, place)


def _judged(sides: Sequence[Session], winners: Sequence[int | str], replies: Sequence[Answer]) -> Session:
    """The pair by the judge's two verdicts; without a winner, the teacher's session with the reason."""
    keys = [reply.key for reply in replies if isinstance(reply, Completion)]
    first, second = winners
    if isinstance(first, int) and first == second:
        pair = _pair(sides, chosen=first)
        return replace(pair, meta={**pair.meta, "keys": [*pair.meta["keys"], *keys]})
    reason = UNPARSED if UNPARSED in winners else "tie" if first == second else "contradiction"
    own, other = sides
    more = {"undecided": reason, "keys": [*own.meta["keys"], *other.meta["keys"], *keys]}
    return replace(own, meta={**own.meta, **more})


def _pair(sides: Sequence[Session], *, chosen: int) -> Pair:
    own, other = sides[chosen], sides[1 - chosen]
    about = {"role": (ROLE, WEAKER)[1 - chosen], "key": other.meta["keys"][0], "truncated": other.meta["truncated"]}
    meta: Mapping[str, object] = {**own.meta, "keys": [*own.meta["keys"], *other.meta["keys"]], "rejected": about}
    return Pair(own.id, own.messages, meta, rejected=other.messages[-1])
