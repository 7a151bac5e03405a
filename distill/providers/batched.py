"""A model in this process: what is in flight becomes batches, answered by a plain function in one thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from distill.errors import DistillError
from distill.keys import canonical
from distill.providers import ProviderError, Reply
from distill.types import Endpoint, Request

GATHER_SECONDS = 0.02
"""A batch that is not full starts when no request has arrived for so long: a few times the journal's group commit."""

Result: TypeAlias = Reply | ProviderError


class Batched:
    """Hands batches of at most `batch` requests to `answer`, which returns a reply or an error a request, in order.

    A batch holds one kind and one sampling only, the first that waits; its requests go longest first, then by their
    content, so that the same requests make the same batch in whatever order they came. A `DistillError` of `answer`
    stops the run as it is; any other exception stops it too, with its one line.
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], Sequence[Result]], endpoint: Endpoint, *, batch: int = 32
    ) -> None:
        self.endpoint = endpoint
        self._answer = answer
        self._batch = batch
        self._waiting: dict[asyncio.Future[Reply], Request] = {}
        self._arrived = asyncio.Event()
        self._batches: asyncio.Task[None] | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] | None = None
        """What the thread is to do, `None` to end; there is a thread while there is a queue."""

    async def send(self, request: Request) -> Reply:
        """Wait for the batch that takes this request."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[future] = request
        self._arrived.set()
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._run_batches())
        try:
            return await future
        finally:
            self._waiting.pop(future, None)

    async def _run_batches(self) -> None:
        """Answer batch after batch until nothing waits."""
        while self._waiting:
            await self._gather()
            chosen = self._choose()
            for future, _ in chosen:
                self._waiting.pop(future, None)
            outcome = await self._in_thread([request for _, request in chosen])
            for number, (future, _) in enumerate(chosen):
                if future.done():
                    continue
                result = outcome if isinstance(outcome, Exception) else outcome[number]
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _gather(self) -> None:
        """Until a batch is full, or nothing more arrives."""
        while len(self._waiting) < self._batch:
            self._arrived.clear()
            try:
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _choose(self) -> list[tuple[asyncio.Future[Reply], Request]]:
        first = next(iter(self._waiting.values()))
        alike = [pair for pair in self._waiting.items() if _group(pair[1]) == _group(first)]
        return sorted(alike[: self._batch], key=lambda pair: _order(pair[1]))

    async def _in_thread(self, requests: Sequence[Request]) -> Sequence[Result] | Exception:
        """The function's replies, or what it raised; run in our own thread, which never keeps the process alive."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Sequence[Result] | Exception] = loop.create_future()

        def job() -> None:
            outcome = self._outcome(requests)
            with suppress(RuntimeError):  # the loop was left while the model worked
                loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(outcome))

        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_work, args=[self._jobs], name="batched", daemon=True).start()
        self._jobs.put(job)
        return await done

    def _outcome(self, requests: Sequence[Request]) -> Sequence[Result] | Exception:
        try:
            replies = self._answer(requests)
        except DistillError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a model raises would meet every other batch as well
            return ProviderError("model", f"the model failed: {type(error).__name__}: {error}", fatal=True)
        if len(replies) != len(requests):
            detail = f"the model gave {len(replies)} replies to {len(requests)} requests"
            return ProviderError("model", detail, fatal=True)
        return replies

    async def close(self) -> None:
        """End the thread after its batch."""
        if self._batches is not None:
            self._batches.cancel()
            self._batches = None
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None
        self._arrived = asyncio.Event()  # the old one belongs to the loop that waited on it


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _group(request: Request) -> tuple[Any, ...]:
    return request.kind, request.sampling, request.prompt is None


def _order(request: Request) -> tuple[int, str]:
    content = canonical(request)
    return -len(content), content
