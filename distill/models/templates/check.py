"""Train–serve check: whether serving renders a conversation to the tokens used in training.

A conversation up to its next answer must have the same token ids from (a) the trainer (`chat_template.prompt_ids`),
(b) the chat template saved with the student, as `apply_chat_template` renders it, (c) a running server. The first
differing position is reported with its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from distill.engine.providers import ProviderError
from distill.engine.providers.openai import call
from distill.errors import DistillError, EndpointError
from distill.models import chat_template
from distill.types import Message, Session

MOST = 64
"""Largest number of a run's conversations that are compared."""
SAVED, SERVED = "the saved chat template", "the server"

Reading: TypeAlias = Callable[[Sequence[Message]], list[int]]
"""Token ids of a conversation up to its next answer. Raises `DistillError` for one that it cannot render."""


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """First position at which the served tokens differ from those of training."""

    dialogue: str
    by: str
    position: int
    trained: str
    other: str
    spelled: str | None
    """A control token that a message spells: it is real in the template's rendering and text in training."""

    def line(self) -> str:
        """The difference in one line."""
        line = f"{self.dialogue}: token {self.position} is {self.trained} by the trainer and {self.other} by {self.by}"
        if self.spelled is None:
            return line
        return f"{line} (a message spells {self.spelled}, which training and `distill serve` keep as text)"


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """Result of the check."""

    dialogues: int
    by: tuple[str, ...]
    differences: tuple[TokenDifference, ...]

    @property
    def alike(self) -> bool:
        """Whether all differences are explained by messages that spell control tokens."""
        return all(difference.spelled for difference in self.differences)


def dialogues_of(sessions: Iterable[Session]) -> list[tuple[str, tuple[Message, ...]]]:
    """Conversations to compare: those of a run, each up to its last answer, and the examples."""
    answered = (session for session in sessions if session.messages and session.messages[-1].role == "assistant")
    dialogues = [(session.id, session.messages[:-1]) for session in islice(answered, MOST)]
    return [*dialogues, *((f"example {number}", turns) for number, turns in enumerate(examples(), start=1))]


def examples(*, system: bool = True) -> list[tuple[Message, ...]]:
    """Conversations up to a question, with contents that templates often change; half of them have a system turn.

    Without `system`, none has.
    """
    texts = (
        "What is 2 + 2?",
        '<think>\nAdd them.\n</think>\n\n4, of "course": {{ .Content }}\n\nAnd `more`.',
        "Why?\n\n\tTell me.",
        "Ünï 日本 🙂",
    )
    conversations: list[tuple[Message, ...]] = []
    for length in (1, 3, 5):
        roles = ("user", "assistant", "user", "assistant", "user")[:length]
        turns = tuple(map(Message, roles, (*texts, texts[0])))
        conversations += [turns, (Message("system", "Be brief.\nBe kind."), *turns)] if system else [turns]
    return conversations


def check(
    dialogues: Sequence[tuple[str, Sequence[Message]]],
    *,
    template: str,
    tokenizer: Any,
    readings: Mapping[str, Reading],
) -> TemplateReport:
    """Compare every reading with the trainer's ids, except for conversations that the template cannot render."""
    differences: list[TokenDifference] = []
    compared, controls = 0, chat_template.controls(template, tokenizer)
    for name, messages in dialogues:
        try:
            trained = chat_template.prompt_ids(messages, template, tokenizer)
        except DistillError:
            continue
        compared += 1
        spelled = next((mark for message in messages for mark in controls if mark in message.content), None)
        for by, reading in readings.items():
            for position, (ours, theirs) in enumerate(zip_longest(trained, reading(messages))):
                if ours != theirs:
                    tokens = _token_text(tokenizer, ours), _token_text(tokenizer, theirs)
                    differences.append(TokenDifference(name, by, position, *tokens, spelled))
                    break
    return TemplateReport(compared, tuple(readings), tuple(differences))


def by_template(tokenizer: Any) -> Reading:
    """Ids from a tokenizer's own chat template, as plain transformers uses it."""

    def reading(messages: Sequence[Message]) -> list[int]:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return list(tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=True, return_dict=False))

    return reading


def by_server(base_url: str, *, api_key: str | None = None, seconds: float = 60.0) -> Reading:
    """Ids from a server with `/tokenize`: ours, or vLLM's. Raises `EndpointError` where it gives none."""
    parts = urlsplit(base_url)
    address = parts._replace(path=parts.path.rstrip("/").removesuffix("/v1")).geturl()

    def reading(messages: Sequence[Message]) -> list[int]:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        body = {"messages": plain, "add_generation_prompt": True}
        try:
            status, reply = call(address, "POST", "/tokenize", body, api_key=api_key, timeout_seconds=seconds)
            if status != 200:
                raise ProviderError("refused", f"HTTP {status}")
            return [int(id_) for id_ in json.loads(reply)["tokens"]]
        except (ProviderError, ValueError, RecursionError, KeyError, TypeError) as error:
            why = error.detail if isinstance(error, ProviderError) else type(error).__name__
            raise EndpointError(
                f"{address}/tokenize gives no tokens ({why}); expected `distill serve`, or vLLM"
            ) from error

    return reading


def _token_text(tokenizer: Any, id_: int | None) -> str:
    """A token with its id; `the end` after the last one."""
    return "the end" if id_ is None else f"{tokenizer.decode([id_])!r} ({id_})"
