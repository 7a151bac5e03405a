"""The teacher plays both sides of a conversation about a task's subject (Xu et al., 2023, Baize)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from distill.collect.dialogue import Dialogue, Turn, converse, dialogue_session, user_turn, without_leak
from distill.collect.sessions import ROLE, put
from distill.core import assets
from distill.recipe import Asks, BaseOptions, SamplingOptions
from distill.text.echoes import instructions, is_repeated
from distill.text.thinking import split_answer
from distill.text.wrappers import strip_wrappers, without_rulers
from distill.types import Completion, Failure, Flow, Message, Request, Sampling, Session, Task

VISITOR, HELPER = "[Visitor]", "[Helper]"
"""Marks of the speakers, in words that no chat template uses."""
_MARKS = (
    re.compile(r"(?<!['\"`(])[*_]{0,2}\[(Visitor|Helper)\][*_]{0,2}(?:[ \t]*[:\uff1a][*_]{0,2})?", re.IGNORECASE),
    re.compile(r"^[ \t>*_#]*(Visitor|Helper)[*_]*[ \t]*[:\uff1a][*_]*", re.IGNORECASE | re.MULTILINE),
)
"""The marks of the prompt; where there are none, a speaker's name with a colon at the start of a line."""


class SelfChat:
    """Baize's two forms of self-chat: a whole transcript per answer, or two requests per round.

    Differences from the original, and why:
    - the last piece of a transcript is dropped only where the answer is truncated (`max_tokens`) or the piece is half
      an exchange; the original always drops it, and so loses a good exchange of every finished transcript;
    - a turn that continues as another speaker is cut there, and the dialogue ends;
    - in `rounds` a visitor who says thanks, repeats a question or speaks as the helper ends the dialogue; the original
      always has its fixed number of rounds.
    """

    class Options(BaseOptions):
        """Options of `collect: {strategy: self_chat}`."""

        dialogue: Literal["transcript", "rounds"] = "transcript"
        """`transcript`: one request for the whole dialogue. `rounds`: per exchange, one request for the visitor's turn,
        which continues a transcript, and one for the answer, in a plain chat."""
        exchanges: Annotated[int, Field(ge=1, le=20)] = 4
        """Number of exchanges; an upper bound in `rounds`. In `transcript`, `max_tokens` must have room for all."""
        system: str = ""
        """System message of every session, and in `rounds` of every answer. Empty: none."""
        ask: Literal["chat", "completion"] = "chat"
        """How transcripts are requested: as a chat message, or as raw text to continue, for models without a chat."""
        user_sampling: SamplingOptions | None = None
        """Sampling of the visitor's turns in `rounds`; that of the teacher's answers when left out."""

        @property
        def asks(self) -> Asks:
            """One request, or two per exchange, whose prompts contain the dialogue so far."""
            if self.dialogue == "transcript":
                return Asks(1, 220)
            count, visiting = self.exchanges, self.user_sampling
            samplings = () if visiting is None else (visiting.sampling(),)
            return Asks(2 * count, 130 * count, count + 2 * count * (count - 1), samplings=samplings)

    def __init__(self, options: Options, *, sampling: Sampling | None = None) -> None:
        self.options = options
        self.sampling = sampling or Sampling()
        sampling_of_user = options.user_sampling.sampling() if options.user_sampling is not None else self.sampling
        self._visiting = replace(sampling_of_user, stop=(*sampling_of_user.stop, HELPER))
        self._transcript = assets.load("strategies/self_chat_transcript.txt")
        self._next = assets.load("strategies/self_chat_user.txt")
        self._prompt_lines = instructions(self._next)

    def flow(self, task: Task, rng: Random) -> Flow[Session | Failure]:
        """The dialogue about a task, or the failure in its place. `rng` is not used.

        `meta.ended` says why the dialogue ends, `meta.leaks` that a turn was cut.
        """
        topic = put(task, rng=rng)
        reply = yield from (self._in_one(topic) if self.options.dialogue == "transcript" else self._in_rounds(topic))
        if isinstance(reply, Failure):
            return reply
        return dialogue_session(
            task, reply, system=self.options.system, strategy="self_chat", dialogue=self.options.dialogue
        )

    def _in_one(self, topic: str) -> Flow[Dialogue | Failure]:
        text = assets.fill(self._transcript, topic=topic, exchanges=str(self.options.exchanges))
        answer: Completion | Failure = yield self._request(text, VISITOR, self.sampling)
        if isinstance(answer, Failure):
            return answer
        split = split_answer(answer, "strip", topic)
        if isinstance(split, Failure):
            return split
        opening = VISITOR if self.options.ask == "completion" else ""
        reply = parse_transcript(opening + split.answer, is_cut=answer.finish == "length")
        reply.keys.append(answer.key)
        if not reply.messages:
            return Failure(
                key=answer.key, reason="no_exchange", detail=f"no exchange in it: {reply.ended}", transient=False
            )
        return reply

    def _in_rounds(self, topic: str) -> Flow[Dialogue | Failure]:
        def ask_visitor(before: Sequence[Message]) -> Request:
            marks = {"user": VISITOR, "assistant": HELPER}
            transcript = "\n".join(f"{marks[message.role]} {message.content}" for message in before)
            text = assets.fill(self._next, topic=topic, transcript=transcript or "(It has not begun yet.)")
            return self._request(text, VISITOR, self._visiting, keeps_mark=True)

        def read_visitor(answer: Completion, before: Sequence[Message]) -> Turn:
            return user_turn(answer, before, markers=(VISITOR, HELPER), prompt_lines=self._prompt_lines)

        return converse(
            rounds=self.options.exchanges,
            ask_user=ask_visitor,
            read_user=read_visitor,
            system=self.options.system,
            sampling=self.sampling,
        )

    def _request(self, text: str, mark: str, sampling: Sampling, *, keeps_mark: bool = False) -> Request:
        """Raw text always ends with the mark of the next speaker; a chat message only if it `keeps_mark`."""
        if self.options.ask == "completion":
            return Request(role=ROLE, prompt=f"{text}\n{mark}", sampling=sampling)
        message = f"{text}\n{mark}" if keeps_mark else text
        return Request(role=ROLE, messages=(Message("user", message),), sampling=sampling)


_Piece: TypeAlias = tuple[str, str]
"""A speaker, and the text after the speaker's mark."""


def parse_transcript(text: str, *, is_cut: bool = False) -> Dialogue:
    """The exchanges of a transcript up to its first malformed one; `ended` says why they end.

    Text before the visitor's first mark and after the last complete exchange is dropped; the last exchange of a
    truncated transcript (`is_cut`) is not complete. An exchange is one non-empty turn of each speaker. A turn in which
    another speaker begins is cut there and is the last; a repeated question, or an answer that only repeats its
    question, ends the exchanges before it.
    """
    pieces = _pieces(strip_wrappers(text))
    first = next((index for index, (speaker, _) in enumerate(pieces) if speaker == "visitor"), len(pieces))
    pieces = pieces[first:]
    reply = Dialogue(ended="complete")
    for index in range(0, len(pieces), 2):
        pair = pieces[index : index + 2]
        is_last = index + 2 >= len(pieces)
        if (reason := _fault(pair, is_cut=is_cut and is_last)) is not None:
            reply.ended = reason
            break
        (question, in_question), (answer, in_answer) = (without_leak(turn) for _, turn in pair)
        if is_repeated(question, [message.content for message in reply.messages[::2]]):
            reply.ended = "repeated"
            break
        if is_repeated(answer, [question]):
            reply.ended = "echo"
            break
        if in_question or in_answer:
            reply.leaks, reply.ended = ["cut"], "role_leak"
        if question and answer and not in_question:
            reply.messages += [Message("user", question), Message("assistant", answer)]
        if reply.leaks:
            break
    return reply if pieces else replace(reply, ended="no_marks")


def _pieces(text: str) -> list[_Piece]:
    marks = next((matches for mark in _MARKS if (matches := list(mark.finditer(text)))), [])
    ends = [*(mark.start() for mark in marks), len(text)][1:]
    return [(mark[1].lower(), without_rulers(text[mark.end() : end])) for mark, end in zip(marks, ends, strict=True)]


def _fault(pair: Sequence[_Piece], *, is_cut: bool) -> str | None:
    """Why two consecutive pieces are not an exchange."""
    if is_cut:
        return "cut_answer"
    if len(pair) < 2:
        return "half_exchange"
    if [speaker for speaker, _ in pair] != ["visitor", "helper"]:
        return "no_alternation"
    return None if all(turn for _, turn in pair) else "empty_turn"
