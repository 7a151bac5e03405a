"""LLM judge: grades each session by a rubric, and drops those below a threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.core.assets import fill, load
from distill.core.hashing import unused_tag
from distill.curate.filters import AskingOptions, answers_of
from distill.text.judge_replies import Grade, GradeScale, read_grade
from distill.text.tokens import harmless
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session, Verdict

DEFAULT_SAMPLING = Sampling(temperature=0.0, max_tokens=512)
"""Default for the recipe's judge: greedy, with room for reasons."""


class Judge:
    """A judge's grade of the assistant's part of a session, from 0 (useless) to `highest`, or one of `choices`.

    Alpagasus (Chen et al., 2023, section 2) keeps rows with a grade of at least 4.5 of 5, 9k of Alpaca's 52k:
    `{filter: judge, highest: 5, min_score: 4.5}`. Without `min_score` the filter only measures; grade and reason are in
    each row's verdict. A reply without a grade, or whose grade only repeats the session's own words, is `unparsed` and
    keeps the row, unless `drop_unparsed` is set. SmolLM2-135M-Instruct cannot grade: none of 48 replies contained a
    grade, by number or by choice.
    """

    class Options(AskingOptions):
        """Options of `filter: judge`."""

        criteria: tuple[str, ...] = ()
        """Criteria, one per line; the five in prompts/judges/quality.txt when left out."""
        highest: Annotated[int, Field(ge=1, le=1000)] = 10
        """The best grade; the worst is 0."""
        min_score: float | None = None
        """Lowest grade to keep."""
        choices: tuple[Annotated[str, Field(pattern=r"^\w[\w -]{0,39}$")], ...] = ()
        """Named grades in place of a number, such as `[bad, good]`."""
        accept: tuple[str, ...] = ()
        """The choices that keep a session."""
        drop_unparsed: bool = False
        """Drop sessions without a readable grade."""
        max_tokens: Annotated[int, Field(ge=16)] | None = None
        """Bound of the judge's reply; that of the recipe's judge, else 512, when left out."""

        @model_validator(mode="after")
        def _consistent(self) -> Judge.Options:
            if self.min_score is not None and self.choices:
                raise ValueError("min_score and choices exclude each other; with choices, list in accept what is kept")
            if self.min_score is not None and not 0 <= self.min_score <= self.highest:
                raise ValueError(f"min_score {self.min_score:g} is outside of 0 to {self.highest}")
            if len({choice.casefold() for choice in self.choices}) < len(self.choices) or len(self.choices) == 1:
                raise ValueError("choices: give two or more that differ")
            if odd := sorted(set(self.accept) - set(self.choices)):
                raise ValueError(f"accept names {', '.join(odd)}, which is none of the choices")
            if self.choices and not self.accept:
                raise ValueError("choices without accept would drop every row; list in accept what is kept")
            return self

    scope: Literal["row"] = "row"
    role = "judge"

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.every_row = options.every_row
        default = sampling or DEFAULT_SAMPLING
        self._scale = GradeScale(options.highest, options.choices)
        self._sampling = replace(
            default,
            temperature=DEFAULT_SAMPLING.temperature if default.temperature is None else default.temperature,
            max_tokens=options.max_tokens or default.max_tokens or DEFAULT_SAMPLING.max_tokens,
        )

    @classmethod
    def most_tokens(cls, options: Options) -> int:
        """Most tokens of one reply, for the forecast of `check`."""
        return options.max_tokens or DEFAULT_SAMPLING.max_tokens or 0

    def measure(self, session: Session) -> Flow[Grade | None]:
        """The grade; `None` where the judge could not be asked."""
        if not any(answer.strip() for answer in answers_of(session)):
            return Grade(problem="no_answer")
        answer: Completion | Failure = yield Request(
            role=self.role, messages=(Message("user", question(session, self.options)),), sampling=self._sampling
        )
        if isinstance(answer, Failure):
            return None
        texts = [message.content for message in session.messages]
        grade = read_grade(answer.text, self._scale, texts=texts, tag=tag_of(session))
        return replace(grade, problem="cut") if grade.problem and answer.finish == "length" else grade

    def decide(self, value: Grade) -> Verdict:
        """By `min_score` or `accept`; a verdict's note holds the judge's reasons."""
        options, note = self.options, value.reason or None
        if value.problem == "no_answer":
            return Verdict(rule="judge", keep=True, reason="no_answer")
        if value.problem:
            keep = not options.drop_unparsed
            return Verdict(rule="judge", keep=keep, reason="unparsed", value=value.problem, note=note)
        if value.choice is not None:
            keep, limit = value.choice in options.accept, ", ".join(options.accept)
            reason = "ok" if keep else "not_accepted"
            return Verdict(rule="judge", keep=keep, reason=reason, value=value.choice, threshold=limit, note=note)
        keep, least = options.min_score is None or (value.score or 0.0) >= options.min_score, options.min_score
        reason = "ok" if keep else "low_score"
        return Verdict(rule="judge", keep=keep, reason=reason, value=value.score, threshold=least, note=note)


# --- asking


def question(session: Session, options: Judge.Options) -> str:
    """The whole message to the judge; the session's texts are marked as data."""
    tag = tag_of(session)
    criteria = "\n".join(f"- {line}" for line in options.criteria or load("judges/quality.txt").splitlines())
    conversation = "\n".join(
        f"<{message.role}-{tag}>\n{harmless(message.content)}\n</{message.role}-{tag}>" for message in session.messages
    )
    return fill(load("judges/grade.txt"), tag=tag, criteria=criteria, form=_form(options), conversation=conversation)


def _form(options: Judge.Options) -> str:
    if options.choices:
        return f"Verdict: X (where X is one of: {', '.join(options.choices)})"
    return f"Score: N (where N is a number from 0, useless, to {options.highest}, nothing to improve)"


def tag_of(session: Session) -> str:
    """A tag that does not occur in the session's texts: eight hexadecimal digits of their SHA-256."""
    return unused_tag("\n".join(message.content for message in session.messages))
