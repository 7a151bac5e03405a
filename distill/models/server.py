"""HTTP application of `distill serve`: OpenAI-compatible, for a local model or a run's student."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from distill.core import processes, student_folder
from distill.core.console import Say
from distill.engine.providers import ProviderError, one_line
from distill.errors import ServerError
from distill.models.child_server import served_name
from distill.models.in_process import load_student, load_whole
from distill.models.openai_api.bodies import Body, ChatBody, PromptBody, Question, TokensBody, parsed
from distill.models.openai_api.event_stream import Listener, stream
from distill.models.openai_api.replies import Replies, Texts
from distill.models.server_access import AccessControl, AccessRefusal, bound, cannot_listen, is_loopback

if TYPE_CHECKING:
    from distill.models.continuous_batching import DecodedAnswer, Decoder


LARGEST_BODY_BYTES = 4 * 2**20
"""A larger request is refused with 413."""
STOP_SECONDS = 2.0
"""Longest wait for the current step when the server stops."""
LOOK_SECONDS = 1.0
"""Interval between checks that the decoder is alive."""

_UNUSABLE_REQUEST = {"context_length", "template", "empty_prompt", "prompt"}


# --- the app


class _App:
    """The methods of the API over one decoder."""

    def __init__(
        self, decoder: Decoder, tokenizer: Any, name: str, aliases: set[str], *, strips: bool, system: str | None
    ) -> None:
        self._decoder = decoder
        self._texts = Texts(copy.deepcopy(tokenizer))  # the decoder uses its own in other threads
        self._name = name
        self._names = aliases | {name}
        self._strips = strips
        self._system = system
        self._created = int(time.time())

    def application(self, access: AccessControl) -> web.Application:
        app = web.Application(client_max_size=LARGEST_BODY_BYTES, middlewares=[access.admit])
        app.on_response_prepare.append(access.mark)
        app.router.add_post("/v1/chat/completions", partial(self._complete, kind=ChatBody))
        app.router.add_post("/v1/completions", partial(self._complete, kind=PromptBody))
        app.router.add_post("/tokenize", self._tokens)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_get("/health", self._health)
        return app

    async def _complete(self, request: web.Request, *, kind: type[Body]) -> web.StreamResponse:
        body = await self._body(request, kind)
        questions = body.questions(self._system)
        replies = Replies(body, self._name, self._texts, strips=self._strips)
        if not body.stream:
            return web.json_response(replies.whole(await self._answers(body, questions)))

        def submit(index: int, listener: Listener) -> Future[DecodedAnswer]:
            return self._submit(body, questions[index], listener)

        return await stream(request, replies, len(questions), submit, refusal=_refusal, counts=body.streams_usage)

    async def _tokens(self, request: web.Request) -> web.Response:
        """The ids of the prompt, computed as for an answer."""
        body = await self._body(request, TokensBody)
        [decoded] = await self._answers(body, body.questions(self._system))
        return web.json_response({"count": len(decoded.prompt_ids), "tokens": decoded.prompt_ids})

    async def _body(self, request: web.Request, kind: type[Body]) -> Body:
        body = parsed(await request.read(), kind)
        if body.model is not None:
            self._check_name(body.model)
        return body

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            message = one_line(f'there is no model "{name}" here; there is "{self._name}"')
            raise AccessRefusal(404, message, code="model_not_found", param="model")

    async def _answers(self, body: Body, questions: Sequence[Question]) -> list[DecodedAnswer]:
        """All answers, or the error of the first that fails; those that are not needed any more are given up."""
        futures = [self._submit(body, question) for question in questions]
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        except ProviderError as error:
            raise _refusal(error) from error
        finally:
            for future in futures:
                future.cancel()

    def _submit(self, body: Body, question: Question, listener: Listener | None = None) -> Future[DecodedAnswer]:
        is_scored = isinstance(body, PromptBody) and bool(body.echo) and body.top is not None
        return self._decoder.submit(
            question.request, ids=question.ids, top=body.top, scores_prompt=is_scored, listener=listener
        )

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._about(self._name)]})

    async def _model(self, request: web.Request) -> web.Response:
        self._check_name(request.match_info["name"])
        return web.json_response(self._about(request.match_info["name"]))

    def _about(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "distill"}

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


def _refusal(error: ProviderError) -> AccessRefusal:
    if error.reason in _UNUSABLE_REQUEST:
        code = "context_length_exceeded" if error.reason == "context_length" else error.reason
        return AccessRefusal(400, error.detail, code=code)
    return AccessRefusal(500, error.detail, code=error.reason)


# --- the process


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    origins: Sequence[str] = (),
    api_key: str | None = None,
    system: str | None = None,
    say: Say,
) -> None:
    """Serve until SIGTERM or SIGINT. `model` is what `materialise` takes, or a run folder with a student.

    Says "listening http://HOST:PORT/v1" when it answers; `port` 0 takes a free port.
    Chat uses the tokenizer's own template (for a student the template of its training), in which control tokens
    that a message mentions stay text; a raw prompt is tokenised unchanged. A request without max_tokens gets at most
    512. `system` begins conversations that have no system message. `origins` and `api_key` are those of
    `AccessControl`. Raises `UnsupportedSystem` on Windows, `ServerError` when the port is taken, `ModelError` for the
    model, and `RecipeError` for an invalid origin or key.
    """
    processes.require_posix()
    access = AccessControl(host, origins=origins, api_key=api_key)
    listener = bound(host, port)  # no client connects before the model is loaded
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # while the model loads there is nothing to clean up
    if not is_loopback(host) and api_key is None:
        say(
            f"warning: anyone who can reach {host} can use this server; to ask for a key, type: export NAME=…, and add"
            " --api-key-env NAME"
        )
    app, decoder = _load(model, system, say)
    decoder.start()
    asyncio.run(_listen(app.application(access), listener, decoder, host, say))
    if not decoder.stop(seconds=STOP_SECONDS):
        os._exit(0)  # no client waits for a step that takes longer


def _load(model: str, system: str | None, say: Say) -> tuple[_App, Decoder]:
    import torch

    from distill.models.continuous_batching import Decoder

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(processes.cores())
    student = student_folder.current(Path(model).expanduser())
    is_student = student_folder.is_student(student)
    loaded = load_student(student) if is_student else load_whole(model, "own", say=say)
    decoder = Decoder(loaded.model, loaded.tokenizer, loaded.template)
    strips = loaded.template != "own"
    return _App(decoder, loaded.tokenizer, served_name(model), {model}, strips=strips, system=system), decoder


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
        raise cannot_listen(host, error) from error
    name = f"[{host}]" if ":" in host else host
    say(f"listening http://{name}:{listener.getsockname()[1]}/v1")
