"""Requests of OpenAI's API as `distill serve` takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from distill.engine.providers import one_line
from distill.models.server_access import AccessRefusal
from distill.types import Message, Request, Sampling

MOST_MESSAGES = 1024
"""Per request. The template is rendered once per earlier answer: 800 messages take 1.3 s, 3,200 would take 19."""
MOST_CHOICES = 128
"""Answers to one request, as in OpenAI's API."""
MOST_ALTERNATIVES = 20

_NEUTRAL: dict[str, list[Any]] = {
    "best_of": [1],
    "logit_bias": [{}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "service_tier": ["auto"],
    "store": [False],
    "parallel_tool_calls": [True, False],
}
"""Fields of the API that are not supported, each with the values that have no effect."""
_WITHOUT_EFFECT = {"user", "metadata", "safety_identifier", "prompt_cache_key"}


def _text_of(content: Any) -> Any:
    """The content of a message as one string; a list of text parts is joined, and none is empty."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if None in parts:
        raise ValueError("only parts of type text are understood")
    return "".join(map(str, parts))


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _prompts(value: Any) -> list[str | list[int]]:
    """The prompts of a completion: one or several, each a text or the ids of its tokens."""
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) or _is_ids(one) for one in prompts):
        raise ValueError("expected a text, the ids of its tokens, or a list of either")
    return prompts


_Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]


@dataclass(frozen=True, slots=True)
class Question:
    """One answer to be generated."""

    request: Request
    ids: tuple[int, ...] = ()
    """The tokens of the prompt, where they were given in place of a text."""


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]

    def message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Body(BaseModel):
    """Fields of both methods; `_refuse_unknown` checks the others."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
    model: str | None = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    stop: Annotated[_Stops | None, BeforeValidator(_as_list)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    seed: int | None = None
    n: Annotated[int | None, Field(ge=1, le=MOST_CHOICES)] = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def top(self) -> int | None:
        """Alternatives to score with each token; `None` for no scores."""
        raise NotImplementedError

    @property
    def streams_usage(self) -> bool:
        """Whether the last event of a stream counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def questions(self, system: str | None = None) -> list[Question]:
        """The answers to be generated, in the order of the choices. `system` is for conversations without one."""
        raise NotImplementedError

    def sampling(self) -> Sampling:
        """The settings of every answer."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop or ()),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
        )


class ChatBody(Body):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[_Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MOST_ALTERNATIVES)] = None

    @property
    def top(self) -> int | None:
        """Alternatives to score with each token; `None` for no scores."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def questions(self, system: str | None = None) -> list[Question]:
        """The answers to be generated."""
        sampling = replace(self.sampling(), max_tokens=self.max_completion_tokens or self.max_tokens)
        turns = [turn.message() for turn in self.messages]
        if system and all(turn.role != "system" for turn in turns):
            turns.insert(0, Message("system", system))
        asked = Request(role="served", messages=tuple(turns), sampling=sampling)
        return [Question(replace(asked, replica=replica)) for replica in range(self.n or 1)]


class PromptBody(Body):
    """The body of /v1/completions."""

    prompt: Annotated[list[str | list[int]], BeforeValidator(_prompts)]
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    logprobs: Annotated[int | None, Field(ge=0, le=MOST_ALTERNATIVES)] = None
    echo: bool | None = None

    @property
    def top(self) -> int | None:
        """Alternatives to score with each token; `None` for no scores."""
        return self.logprobs

    def questions(self, system: str | None = None) -> list[Question]:
        """The answers to be generated; one of no tokens is generated as one of one."""
        sampling = replace(self.sampling(), max_tokens=1 if self.max_tokens == 0 else self.max_tokens)
        return [question for prompt in self.prompt for question in self._of(prompt, sampling)]

    def _of(self, prompt: str | list[int], sampling: Sampling) -> Iterator[Question]:
        text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
        for replica in range(self.n or 1):
            asked = Request(role="served", prompt=text, sampling=sampling, replica=replica)
            yield Question(asked, () if isinstance(prompt, str) else tuple(prompt))


class TokensBody(ChatBody):
    """vLLM's request for the tokens of a conversation up to its next answer."""

    add_generation_prompt: Literal[True] = True

    def questions(self, system: str | None = None) -> list[Question]:
        """One answer of one token."""
        asked = super().questions(system)[0].request
        return [Question(replace(asked, sampling=Sampling(temperature=0, max_tokens=1)))]


_AnyBody = TypeVar("_AnyBody", bound=Body)


def parsed(data: bytes, kind: type[_AnyBody]) -> _AnyBody:
    """The body of a request. Raises `AccessRefusal` where it is malformed or uses unsupported features."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AccessRefusal(400, one_line(f"the body is no JSON: {error}")) from error
    if not isinstance(value, dict):
        raise AccessRefusal(400, "the body is no JSON object")
    _refuse_unknown(value, kind)
    try:
        body = kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AccessRefusal(400, one_line(f"{where}: {first['msg']}"), param=where) from error
    _refuse_contradictions(body)
    return body


def _refuse_unknown(value: Mapping[str, Any], kind: type[BaseModel]) -> None:
    """Refuse fields that would change the answer and are not supported."""
    for name, setting in value.items():
        if name in kind.model_fields or name in _WITHOUT_EFFECT or setting is None:
            continue
        if name not in _NEUTRAL:
            raise AccessRefusal(400, one_line(f"{name} is not available here; leave it out"), param=name)
        if not any(type(setting) is type(neutral) and setting == neutral for neutral in _NEUTRAL[name]):
            only = " or ".join(map(json.dumps, _NEUTRAL[name]))
            raise AccessRefusal(400, f"{name} is only available as {only} here; leave it out", param=name)


def _refuse_contradictions(body: Body) -> None:
    """Refuse fields that the API allows only together, and more answers than one request may have."""
    if isinstance(body, ChatBody) and body.top_logprobs and not body.logprobs:
        raise AccessRefusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if isinstance(body, PromptBody):
        if body.stream and body.echo and (body.logprobs is not None or body.max_tokens == 0):
            raise AccessRefusal(400, "a stream repeats the prompt (echo) without logprobs only", param="stream")
        if body.max_tokens == 0 and not body.echo:
            raise AccessRefusal(400, "max_tokens: 0 needs echo: true", param="max_tokens")
        if (answers := len(body.prompt) * (body.n or 1)) > MOST_CHOICES:
            message = f"the request asks for {answers} answers; expected at most {MOST_CHOICES} (prompts times n)"
            raise AccessRefusal(400, message, param="prompt")
