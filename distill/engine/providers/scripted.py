"""Provider without a model: answers from a function or a list, with scripted latencies and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

from distill.engine.providers import ProviderError, Reply
from distill.types import Endpoint, Request, Usage

Line: TypeAlias = "Reply | str | ProviderError"
"""A whole reply, the text of one that stopped, or an error to raise."""


class Scripted:
    """Follows a script instead of asking a model.

    `script` is a function from the request to a line, or lines in the order of sending; a list that runs out is a
    fatal error. `latency_seconds` is a number or a function of the request. `requests` has the requests sent, in order.
    """

    def __init__(
        self,
        script: Callable[[Request], Line] | Sequence[Line],
        endpoint: Endpoint | None = None,
        *,
        latency_seconds: float | Callable[[Request], float] = 0.0,
    ) -> None:
        self._script = script
        self._latency_seconds = latency_seconds
        self.endpoint = endpoint or Endpoint(model="scripted")
        self.requests: list[Request] = []

    async def send(self, request: Request) -> Reply:
        """The script's next line, after the latency."""
        number = len(self.requests)
        self.requests.append(request)
        latency = self._latency_seconds
        await asyncio.sleep(latency(request) if callable(latency) else latency)
        line = self._script(request) if callable(self._script) else self._line(number)
        if isinstance(line, ProviderError):
            raise line
        return _reply(request, line) if isinstance(line, str) else line

    def _line(self, number: int) -> Line:
        assert not callable(self._script)
        if number >= len(self._script):
            raise ProviderError("script", f"the script ended after {len(self._script)} lines", fatal=True)
        return self._script[number]

    async def close(self) -> None:
        """Nothing is held open."""


def _reply(request: Request, text: str) -> Reply:
    """A reply that stopped; its usage counts words."""
    question = request.prompt or " ".join(message.content for message in request.messages)
    return Reply(text=text, usage=Usage(len(question.split()), len(text.split())), raw={"text": text})
