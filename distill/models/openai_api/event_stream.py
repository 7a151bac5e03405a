"""Streams answers as server-sent events, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from aiohttp import web

from distill.engine.providers import ProviderError
from distill.models.openai_api.replies import Replies
from distill.models.server_access import AccessRefusal

if TYPE_CHECKING:
    from distill.models.continuous_batching import DecodedAnswer
    from distill.models.token_scores import TokenScore

Listener: TypeAlias = "Callable[[int, TokenScore | None], None]"
Submit: TypeAlias = "Callable[[int, Listener], Future[DecodedAnswer]]"
"""Submits the question with this index; its tokens go to the listener."""


async def stream(
    request: web.Request,
    replies: Replies,
    count: int,
    submit: Submit,
    *,
    refusal: Callable[[ProviderError], AccessRefusal],
    counts: bool,
) -> web.StreamResponse:
    """Stream `count` answers as they grow, and what they took if it `counts`.

    An error before the first token is raised as the `refusal` that any request gets; a later one is an event. The
    answers are given up when the client leaves.
    """
    events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def post(index: int, what: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed when the server stops
            loop.call_soon_threadsafe(events.put_nowait, (index, what))

    def listener(index: int) -> Listener:
        return lambda token, score: post(index, (token, score))

    futures: list[Future[DecodedAnswer]] = []
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        for index in range(count):
            futures.append(submit(index, listener(index)))
            futures[-1].add_done_callback(partial(post, index))
        first = await events.get()
        if isinstance(first[1], Future) and (error := first[1].exception()) is not None:
            raise refusal(error) if isinstance(error, ProviderError) else error
        await response.prepare(request)
        try:
            async for event in _events(first, events, replies, count, counts=counts):
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
        except ProviderError as error:
            await response.write(b"data: " + json.dumps(refusal(error).body()).encode() + b"\n\n")
        await response.write_eof()
    finally:
        for future in futures:
            future.cancel()
    return response


async def _events(
    first: tuple[int, Any], events: asyncio.Queue[tuple[int, Any]], replies: Replies, count: int, *, counts: bool
) -> AsyncIterator[dict[str, Any]]:
    """The events of all answers in the order of their tokens. Raises `ProviderError` where an answer fails."""
    answers = [_Answer(index, replies) for index in range(count)]
    done: dict[int, DecodedAnswer] = {}
    index, what = first
    while True:
        if isinstance(what, Future):
            done[index] = what.result()
            for event in answers[index].end(done[index]):
                yield event
        else:
            for event in answers[index].take(*what):
                yield event
        if len(done) == count:
            break
        index, what = await events.get()
    if counts:
        yield replies.closing([done[index] for index in range(count)])


class _Answer:
    """One answer of a stream: its text, and the scores of tokens whose text has not been sent."""

    def __init__(self, index: int, replies: Replies) -> None:
        self._index, self._replies = index, replies
        self._text = replies.growing()
        self._pending: list[tuple[int, TokenScore]] = []
        self._sent = 0
        self._is_open = False

    def take(self, token: int, score: TokenScore | None) -> Iterator[dict[str, Any]]:
        """The events that a token allows."""
        yield from self._opening()
        text = self._text.take(token)
        self._pending += [(token, score)] if score is not None else []
        if text:
            yield self._piece(text, 0 if self._text.is_held else len(self._pending))

    def end(self, answer: DecodedAnswer) -> Iterator[dict[str, Any]]:
        """The rest of the answer, and why it ended."""
        yield from self._opening()
        text = self._text.end(self._replies.text(answer))
        rest = max(0, self._replies.covered(answer) - self._sent)
        if text or (rest and self._pending):
            yield self._piece(text, rest)
        yield self._replies.piece(self._index, "", (), finish=self._replies.finish(answer))

    def _opening(self) -> Iterator[dict[str, Any]]:
        if not self._is_open:
            self._is_open = True
            if (event := self._replies.opening(self._index)) is not None:
                yield event

    def _piece(self, text: str, count: int) -> dict[str, Any]:
        scored, self._pending = self._pending[:count], self._pending[count:]
        self._sent += len(scored)
        return self._replies.piece(self._index, text, scored)
