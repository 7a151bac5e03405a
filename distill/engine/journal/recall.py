"""Looks a question up in the journal; with `--retry-failed`, what is no answer is asked again."""

from __future__ import annotations

from distill.engine.journal.keys import Question
from distill.engine.journal.records import set_aside
from distill.engine.journal.store import Journal
from distill.text.chat_replies import choice_of
from distill.text.thinking import split_answer
from distill.types import Answer, Completion, Failure, Request


def recall(journal: Journal, question: Question, *, retry_failed: bool) -> Answer | None:
    """The journal's answer or permanent failure; `None` for what has to be sent.

    `retry_failed` asks failures again, and once per opened journal an endpoint's answer that makes no session, such as
    an empty one. The old answer moves to the table `damaged`.
    """
    answer = journal.get(question.key)
    if not retry_failed or answer is None:
        return answer
    is_kept = question.key in journal.asked_again or not _is_void(answer, question.request)
    if isinstance(answer, Completion) and is_kept:
        return answer
    journal.asked_again.add(question.key)
    journal.write(set_aside(question.key))
    return None


def _is_void(answer: Answer, request: Request) -> bool:
    """Whether there is no answer; an empty one of a model in this process counts, as it would be the same again."""
    if isinstance(answer, Failure):
        return True
    is_endpoints = request.kind == "answer" and choice_of(answer.raw) is not None
    return is_endpoints and isinstance(split_answer(answer, asked=request.prompt or request.messages), Failure)
