"""Train–serve check: whether serving renders a conversation to the tokens used in training.

A conversation up to its next answer has the same token ids by (a) the trainer (`chat.prompt_ids`), (b) the chat
template saved with the student, as `apply_chat_template` renders it, (c) a running server. Where one differs, the first
differing position is reported with its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from distill.engine.providers import ProviderError
from distill.engine.providers.openai import call
from distill.errors import DistillError, EndpointError
from distill.models import chat_template
from distill.types import Message, Session

MOST = 64
"""Most conversations of a run that are compared."""
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
    """A special token that a message spells: the template makes it real, training kept it as text."""

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
        """Whether all differences are explained by messages that spell special tokens."""
        return all(difference.spelled for difference in self.differences)


def dialogues_of(sessions: Iterable[Session]) -> list[tuple[str, tuple[Message, ...]]]:
    """Conversations to compare: those of a run, each up to its last answer, and a few of several turns."""
    dialogues: list[tuple[str, tuple[Message, ...]]] = []
    for session in sessions:
        if len(dialogues) < MOST and session.messages and session.messages[-1].role == "assistant":
            dialogues.append((session.id, session.messages[:-1]))
    return [*dialogues, *((f"example {number}", turns) for number, turns in enumerate(examples(), start=1))]


def examples(*, system: bool = True) -> list[tuple[Message, ...]]:
    """Conversations up to a question with content that templates often mishandle; with `system`, half begin with it."""
    reply = (
        "What is 2 + 2?",
        '<think>\nAdd them.\n</think>\n\n4, of "course": {{ .Content }}\n\nAnd `more`.',
        "Why?\n\n\tTell me.",
        "Ünï 日本 🙂",
    )
    conversations: list[tuple[Message, ...]] = []
    for length in (1, 3, 5):
        turns = tuple(
            Message("assistant" if number % 2 else "user", reply[number % len(reply)]) for number in range(length)
        )
        conversations.append(turns)
        if system:
            conversations.append((Message("system", "Be brief.\nBe kind."), *turns))
    return conversations


def check(
    dialogues: Sequence[tuple[str, Sequence[Message]]],
    *,
    template: str,
    tokenizer: Any,
    readings: Mapping[str, Reading],
) -> TemplateReport:
    """Compare every reading with the trainer's ids; conversations that the template has no place for are left out."""
    differences: list[TokenDifference] = []
    compared = 0
    for name, messages in dialogues:
        try:
            trained = chat_template.prompt_ids(messages, template, tokenizer)
        except DistillError:
            continue
        compared += 1
        spelled = _spelled(messages, tokenizer)
        for by, reading in readings.items():
            difference = _first(name, by, trained, reading(messages), tokenizer, spelled)
            differences += [difference] if difference is not None else []
    return TemplateReport(compared, tuple(readings), tuple(differences))


def by_template(tokenizer: Any) -> Reading:
    """Ids by a tokenizer's own chat template, as plain transformers uses it."""

    def reading(messages: Sequence[Message]) -> list[int]:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return list(tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=True, return_dict=False))

    return reading


def by_server(base_url: str, *, api_key: str | None = None, seconds: float = 60.0) -> Reading:
    """Ids by a server that has `/tokenize`: ours, or vLLM's. Raises `EndpointError` where it gives none."""
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


def _spelled(messages: Sequence[Message], tokenizer: Any) -> str | None:
    """A special token that a message spells out."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return next((token for message in messages for token in special if token in message.content), None)


def _first(
    dialogue: str, by: str, trained: Sequence[int], other: Sequence[int], tokenizer: Any, spelled: str | None
) -> TokenDifference | None:
    for position, (ours, theirs) in enumerate(zip_longest(trained, other)):
        if ours != theirs:
            return TokenDifference(
                dialogue, by, position, _token_text(tokenizer, ours), _token_text(tokenizer, theirs), spelled
            )
    return None


def _token_text(tokenizer: Any, id_: int | None) -> str:
    """A token with its id; `the end` behind the last."""
    return "the end" if id_ is None else f"{tokenizer.decode([id_])!r} ({id_})"
