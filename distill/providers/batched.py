"""A model in this process: what is in flight becomes batches, answered by a plain function in one thread."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from distill.errors import DistillError
from distill.journal import canonical
from distill.providers import ProviderError, Reply
from distill.types import Endpoint, Request

GATHER_SECONDS = 0.02
"""A batch that is not full starts when no request has arrived for so long: a few times the journal's group commit."""


class Batched:
    """Hands batches of at most `batch` requests to `answer`, which returns one reply a request, in order.

    A batch holds one kind and one sampling only, the first that waits; its requests go longest first, then by their
    content, so that the same requests make the same batch in whatever order they came. A `DistillError` of `answer`
    stops the run as it is; any other exception stops it too, with its one line.
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], Sequence[Reply]], endpoint: Endpoint, *, batch: int = 32
    ) -> None:
        self.endpoint = endpoint
        self._answer = answer
        self._batch = batch
        self._waiting: dict[asyncio.Future[Reply], Request] = {}
        self._arrived = asyncio.Event()
        self._batches: asyncio.Task[None] | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

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
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome[number])

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

    async def _in_thread(self, requests: Sequence[Request]) -> Sequence[Reply] | Exception:
        """The function's replies, or what it raised; run in our own thread, which never keeps the process alive."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Sequence[Reply] | Exception] = loop.create_future()

        def job() -> None:
            outcome = self._outcome(requests)
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(outcome))

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="batched", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return await done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _outcome(self, requests: Sequence[Request]) -> Sequence[Reply] | Exception:
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
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None
            self._jobs = queue.SimpleQueue()


def _group(request: Request) -> tuple[Any, ...]:
    return request.kind, request.sampling, request.prompt is None


def _order(request: Request) -> tuple[int, str]:
    content = canonical(request)
    return -len(content), content
