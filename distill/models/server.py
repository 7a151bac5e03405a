"""HTTP application of `distill serve`: OpenAI-compatible, for a local model or a run's student."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from distill.core import student_folder
from distill.core.console import Say
from distill.engine.providers import ProviderError, one_line
from distill.errors import ServerError
from distill.models.child_server import served_name
from distill.models.in_process import load_student, load_whole
from distill.models.server_access import AccessControl, AccessRefusal, is_loopback
from distill.types import Message, Request, Sampling

if TYPE_CHECKING:
    from distill.models.continuous_batching import DecodedAnswer, Decoder


LARGEST_BODY_BYTES = 4 * 2**20
"""A larger request is refused with 413."""
MOST_MESSAGES = 1024
"""Per request. The template is rendered once per earlier answer: 800 messages take 1.3 s, 3,200 would take 19."""
STOP_SECONDS = 2.0
"""Longest wait for the current step when the server stops."""
LOOK_SECONDS = 1.0
"""Interval between checks that the decoder is alive."""

_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "stream": False,
    "logprobs": False,
    "echo": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "tools": [],
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "parallel_tool_calls": True,
}
"""Fields of the API that are not supported, each with the one value that has no effect."""
_WITHOUT_EFFECT = {"user", "metadata", "stream_options", "safety_identifier", "prompt_cache_key"}
_UNUSABLE_REQUEST = {"context_length", "template", "empty_prompt", "prompt"}


# --- requests


def _text_of(content: Any) -> Any:
    """The content of a message as one string; a list of text parts is joined."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if None in parts:
        raise ValueError("only parts of type text are understood")
    return "".join(map(str, parts))


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


_Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]


class _Body(BaseModel):
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

    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop or ()),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
        )


class _ChatBody(_Body):
    messages: Annotated[list[_Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None

    def request(self) -> Request:
        sampling = self.model_copy(update={"max_tokens": self.max_completion_tokens or self.max_tokens}).sampling()
        turns = tuple(Message(turn.role, turn.content) for turn in self.messages)
        return Request(role="served", messages=turns, sampling=sampling)


class _PromptBody(_Body):
    prompt: str

    def request(self) -> Request:
        return Request(role="served", prompt=self.prompt, sampling=self.sampling())


class _TokensBody(_ChatBody):
    """vLLM's request for the tokens of a conversation up to its next answer."""

    add_generation_prompt: Literal[True] = True

    def request(self) -> Request:
        return replace(super().request(), sampling=Sampling(temperature=0, max_tokens=1))


_Kind: TypeAlias = type[_ChatBody] | type[_PromptBody]


def _parsed(data: bytes, kind: _Kind) -> _ChatBody | _PromptBody:
    """The body of a request. Raises `AccessRefusal` where it is malformed or uses unsupported features."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AccessRefusal(400, one_line(f"the body is no JSON: {error}")) from error
    if not isinstance(value, dict):
        raise AccessRefusal(400, "the body is no JSON object")
    _refuse_unknown(value, kind)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AccessRefusal(400, f"{where}: {first['msg']}", param=where) from error


def _refuse_unknown(value: Mapping[str, Any], kind: type[BaseModel]) -> None:
    """Refuse fields that would change the answer and are not supported."""
    for name, setting in value.items():
        if name in kind.model_fields or name in _WITHOUT_EFFECT or setting is None:
            continue
        if name not in _NEUTRAL:
            raise AccessRefusal(400, one_line(f"{name} is not available here; leave it out"), param=name)
        if type(setting) is not type(_NEUTRAL[name]) or setting != _NEUTRAL[name]:
            neutral = json.dumps(_NEUTRAL[name])
            raise AccessRefusal(400, f"{name} is only available as {neutral} here; leave it out", param=name)


# --- the app


class _App:
    """The methods of the API over one decoder."""

    def __init__(self, decoder: Decoder, name: str, aliases: set[str], *, strips: bool) -> None:
        self._decoder = decoder
        self._name = name
        self._names = aliases | {name}
        self._strips = strips
        self._created = int(time.time())

    def application(self, access: AccessControl) -> web.Application:
        app = web.Application(client_max_size=LARGEST_BODY_BYTES, middlewares=[access.admit])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/tokenize", self._tokens)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        return app

    async def _chat(self, request: web.Request) -> web.Response:
        decoded = await self._answer(await request.read(), _ChatBody)
        # Our own templates trim answers in training, so white space around an answer belongs to the template.
        text = decoded.reply.text.strip() if self._strips else decoded.reply.text
        message = {"role": "assistant", "content": text}
        return self._response("chat.completion", "chatcmpl", decoded, {"message": message})

    async def _complete(self, request: web.Request) -> web.Response:
        decoded = await self._answer(await request.read(), _PromptBody)
        return self._response("text_completion", "cmpl", decoded, {"text": decoded.reply.text})

    async def _tokens(self, request: web.Request) -> web.Response:
        """The ids of the prompt, computed as for an answer."""
        decoded = await self._answer(await request.read(), _TokensBody)
        return web.json_response({"count": len(decoded.prompt_ids), "tokens": decoded.prompt_ids})

    async def _answer(self, data: bytes, kind: _Kind) -> DecodedAnswer:
        body = _parsed(data, kind)
        if body.model is not None and body.model not in self._names:
            message = one_line(f'there is no model "{body.model}" here; there is "{self._name}"')
            raise AccessRefusal(404, message, code="model_not_found", param="model")
        try:
            return await asyncio.wrap_future(self._decoder.submit(body.request()))
        except ProviderError as error:
            if error.reason in _UNUSABLE_REQUEST:
                code = "context_length_exceeded" if error.reason == "context_length" else error.reason
                raise AccessRefusal(400, error.detail, code=code) from error
            raise AccessRefusal(500, error.detail, code=error.reason) from error

    def _response(self, kind: str, prefix: str, decoded: DecodedAnswer, choice: Mapping[str, Any]) -> web.Response:
        reply = decoded.reply
        assert reply.usage is not None
        prompt, completion = reply.usage.prompt_tokens, reply.usage.completion_tokens
        body = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._name,
            "choices": [
                {"index": 0, **choice, "finish_reason": reply.finish, "logprobs": None, "token_ids": decoded.token_ids}
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
            "prompt_token_ids": decoded.prompt_ids,
        }
        return web.json_response(body)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": self._created, "owned_by": "distill"}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


# --- the process


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    origins: Sequence[str] = (),
    api_key: str | None = None,
    say: Say,
) -> None:
    """Serve until SIGTERM or SIGINT. `model` is what `materialise` takes, or a run folder with a student.

    Says "listening http://HOST:PORT/v1" when it answers; `port` 0 takes a free port.
    Chat uses the tokenizer's own template (for a student the template of its training), in which control tokens
    that a message mentions stay text; a raw prompt is tokenised unchanged. A request without max_tokens gets at most
    512. `origins` and `api_key` are those of `AccessControl`. Raises `ServerError` when the port is taken,
    `ModelError` for the model, and `RecipeError` for an invalid origin or key.
    """
    access = AccessControl(host, origins=origins, api_key=api_key)
    listener = _bound(host, port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # while the model loads there is nothing to clean up
    if not is_loopback(host) and api_key is None:
        say(
            f"warning: anyone who can reach {host} can use this server; to ask for a key, type: export NAME=…, and add"
            " --api-key-env NAME"
        )
    app, decoder = _load(model, say)
    decoder.start()
    asyncio.run(_listen(app.application(access), listener, decoder, host, say))
    if not decoder.stop(seconds=STOP_SECONDS):
        os._exit(0)  # no client waits for a step that takes longer


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet, so that no client connects before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _cannot_listen(f"{host} port {port}", error) from error
    return listener


def _load(model: str, say: Say) -> tuple[_App, Decoder]:
    import torch

    from distill.models.continuous_batching import Decoder

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    student = student_folder.current(Path(model).expanduser())
    is_student = student_folder.is_student(student)
    loaded = load_student(student) if is_student else load_whole(model, "own", say=say)
    decoder = Decoder(loaded.model, loaded.tokenizer, loaded.template)
    return _App(decoder, served_name(model), {model}, strips=loaded.template != "own"), decoder


async def _listen(app: web.Application, listener: socket.socket, decoder: Decoder, host: str, say: Say) -> None:
    """Answer until a signal, then drop unfinished requests. Raises `ServerError` when the decoder has ended."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    logging.getLogger("aiohttp.server").addFilter(_is_not_the_clients)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1, auto_decompress=False)
    await runner.setup()
    try:
        await _start_site(runner, listener, host, say)
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
            if not decoder.is_alive:
                raise ServerError("the decoder has ended; its traceback is above this line")
    finally:
        await runner.cleanup()


def _is_not_the_clients(record: logging.LogRecord) -> bool:
    """Whether a log record is about the server; malformed HTTP is answered with 400, without a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def _start_site(runner: web.AppRunner, listener: socket.socket, host: str, say: Say) -> None:
    try:
        await web.SockSite(runner, listener, backlog=1024).start()
    except OSError as error:
        raise _cannot_listen(host, error) from error
    name = f"[{host}]" if ":" in host else host
    say(f"listening http://{name}:{listener.getsockname()[1]}/v1")


def _cannot_listen(where: str, error: Exception) -> ServerError:
    return ServerError(f"cannot listen on {where} ({error}); choose another port with --port")
