"""Core values exchanged by stages, parts and the engine; standard library only.

All are frozen and slotted. At the file edge they become JSON through `distill.core.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args


def pairs(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Splits a conversation before each user turn that follows an assistant turn."""
    pair: list[Message] = []
    for message in messages:
        if message.role == "user" and pair and pair[-1].role == "assistant":
            yield pair
            pair = []
        pair.append(message)
    if pair:
        yield pair


def spans(count: int, fits: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Splits `count` items into spans (start, stop), each the longest that fits and of at least one item."""
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and fits(start, stop + 1):
            stop += 1
        yield start, stop
        start = stop


Finish = Literal["stop", "length", "filtered", "tool", "unknown"]
"""How an answer ended: whole, cut at `max_tokens`, withheld, with a call of a tool, or in a way that is not known."""
RequestKind = Literal["answer", "likelihood"]
Model = Literal["base", "previous", "student", "teacher", "teacher_again"]
"""A compared model. `previous` is the student that this one continued, `teacher_again` the teacher's second answer to
the same prompt, sampled again."""
MODELS: tuple[Model, ...] = get_args(Model)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling settings; `None` leaves a setting to the endpoint's default."""

    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    max_tokens: int | None = None
    """Upper bound on generated tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    response_format: Mapping[str, Any] | None = field(default=None, hash=False)
    """The required format of the answer, such as `{"type": "json_object"}`."""
    logprobs: bool | None = None
    """Whether log-probabilities of the answer's tokens are wanted; they stay in the completion's `raw`."""
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Other fields of the request body; `None` removes one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to a role of the recipe; the engine binds the role to an endpoint.

    Exactly one of `messages` (chat) and `prompt` (raw completion) is given.
    """

    role: str
    """`teacher`, `student`, `base`, `judge`, `user` or `weaker`."""
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    replica: int = 0
    """Distinguishes several samples of the same question."""
    kind: RequestKind = "answer"
    continuation: str | None = None
    """For `kind="likelihood"`: the text whose probability after the prompt is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Everything that determines an endpoint's answers; excludes a local port and keys.

    A remote endpoint has `url` (normalised, without userinfo and query); a local one has `fingerprint`.
    """

    model: str
    url: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    """SHA-256 over weights, adapter, quantisation, tokenizer, chat template and dtype of a local model."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the endpoint reported them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer as journalled."""

    key: str
    """SHA-256 of the request and the endpoint, in hex."""
    text: str
    finish: Finish
    usage: Usage | None = None
    """`None` where the endpoint reported none."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The whole response body."""
    loglikelihood: float | None = None
    """For `kind="likelihood"`: sum of log-probabilities of the continuation's tokens, in nats, end token excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request without an answer after all attempts."""

    key: str
    reason: str
    """A short code: `http_400`, `timeout`, `connection`, `malformed`, `aborted`, `filtered`, `empty` …"""
    detail: str
    """One line for people, without secrets."""
    transient: bool
    """Whether asking again may help."""
    attempts: int = 1


Answer: TypeAlias = Completion | Failure

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Flow: TypeAlias = Generator[Request | tuple[Request, ...], Any, T]
"""A part that needs a model: yields a Request (and is sent a Completion or Failure) or a tuple of them (and is sent
the tuple of answers, asked at once), and returns a value. No network, no clock, no `async`."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task for a teacher."""

    id: str
    instruction: str
    input: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation to learn from. `meta` holds strategy, task, lineage, teacher, keys and `truncated`.

    `meta.answer_weights`, where not all answers are learnt, has a 1 or 0 per answer; 0 is context only.
    """

    id: str
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The first user message; empty where there is none."""
        return next((message.content for message in self.messages if message.role == "user"), "")


@dataclass(frozen=True, slots=True)
class Pair(Session):
    """A preference: a session that ends in the chosen answer, and the rejected one.

    `meta.rejected` holds what is known of the latter: `teacher`, `key`, `score`, `truncated`.
    """

    rejected: Message = field(kw_only=True)
    """The other last turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One rule's decision on one session, and its reason."""

    rule: str
    keep: bool
    reason: str
    """A short code such as `too_short`; `ok` by default."""
    value: float | str | None = None
    """The measured value."""
    threshold: float | str | None = None
    """The limit that the value was compared with."""
    neighbour: str | None = None
    """The id of the other row, where the verdict is about two."""
    note: str | None = None
    """The reason in words: a judge's, or why a rule could not measure."""


class RowFilter(Protocol):
    """A curation rule on one session at a time.

    It may also have `mend(session, value) -> Session`, called after `decide`: its result replaces the session, with
    the same id.
    """

    scope: Literal["row"]

    def measure(self, session: Session) -> Any:
        """The value to decide by; it depends on no threshold."""

    def decide(self, value: Any) -> Verdict:
        """Keep or drop, by the rule's options."""


class AskingFilter(Protocol):
    """A curation rule on one session that asks a model; otherwise like `RowFilter`."""

    scope: Literal["row"]
    role: str
    """The role asked: `judge`, or `base` (the student's model before training)."""
    every_row: bool
    """Whether it also measures rows that another rule has dropped, which may cost money."""

    def measure(self, session: Session) -> Flow[Any]:
        """Like that of a `RowFilter`; returns `None` where the model's answers could not be used."""

    def decide(self, value: Any) -> Verdict:
        """Keep or drop, by the rule's options."""


class SetFilter(Protocol):
    """A curation rule on all sessions kept so far, in task order."""

    scope: Literal["set"]

    def decide_all(self, sessions: Sequence[Session]) -> list[Verdict]:
        """One verdict per session, in the same order."""


class Growth(Protocol):
    """An expansion of tasks that is the same at any concurrency.

    The engine creates `propose(k)` and runs it to its first request directly after `admit(k - window)`, so that it
    sees the pool as it stands then; `admit(k, …)` is called in order of k.
    """

    @property
    def window(self) -> int:
        """How many proposals may be outstanding now; part of the algorithm, not of the machine.

        It may grow with the admitted tasks, and never shrinks.
        """

    def propose(self, k: int) -> Flow[list[Task]]:
        """The k-th proposal (k = 0, 1, …): asks, parses, and returns candidate tasks."""

    def admit(self, k: int, tasks: Sequence[Task]) -> list[Task]:
        """Add the candidates that are new to the pool, and return them in order."""
