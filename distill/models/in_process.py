"""Provider for a model in this process; loads at the first request, so that a replay loads nothing."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from distill.core.hashing import canonical, json_sha256
from distill.core.weights import fingerprint, read_base, student_fingerprint
from distill.engine.providers import ProviderError, Reply
from distill.errors import DistillError
from distill.types import Endpoint, Request

if TYPE_CHECKING:
    from distill.models.likelihood import ContinuationScores


GATHER_SECONDS = 0.02
"""Time without a new request after which a batch that is not full starts: a few times the journal's group commit."""
Result: TypeAlias = Reply | ProviderError
Watch: TypeAlias = Callable[[int, str], None]
"""Called with the answered requests of the running batch and a short note; (0, "") at its end."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, ready to generate."""

    model: Any
    tokenizer: Any
    template: str


class InProcess:
    """Answers and likelihoods of one model, in batches; `release` frees its memory, and a later request loads it again.

    `endpoint` must tell everything of `load` that can change an answer. Another seed than the request's own enters no
    key, so there is none: draws depend on `sampling.seed`.
    """

    def __init__(
        self, load: Callable[[], LoadedModel], endpoint: Endpoint, *, batch: int = 32, watch: Watch | None = None
    ) -> None:
        self.endpoint = endpoint
        self._load = load
        self._batch = batch
        self._watch = watch or _ignore
        self._loaded: LoadedModel | None = None
        self._batched = Batched(self._replies, endpoint, batch=batch)

    async def send(self, request: Request) -> Reply:
        """Wait for the batch that takes this request. Raises `ProviderError` for what this model cannot answer."""
        return await self._batched.send(request)

    async def close(self) -> None:
        """End the thread; the model stays."""
        await self._batched.close()

    def release(self) -> None:
        """Let go of the model."""
        if self._loaded is not None:
            from distill.models.device import free_memory

            self._loaded = None
            free_memory()

    def _replies(self, requests: Sequence[Request]) -> Sequence[Result]:
        """Results of one batch, which Batched makes of one kind."""
        self._watch(0, "loading the model" if self._loaded is None else "")
        self._loaded = self._loaded or self._load()
        ask = self._likelihoods if requests[0].kind == "likelihood" else self._answers
        results = ask(self._loaded, requests)
        self._watch(0, "")
        return results

    def _answers(self, loaded: LoadedModel, requests: Sequence[Request]) -> Sequence[Result]:
        from distill.models.generation import answer

        started = time.monotonic()

        def watch(done: int, tokens: int) -> None:
            self._watch(done, f"{tokens / max(time.monotonic() - started, 1e-3):.0f} tok/s")

        return answer(loaded.model, loaded.tokenizer, loaded.template, requests, batch_size=self._batch, watch=watch)

    def _likelihoods(self, loaded: LoadedModel, requests: Sequence[Request]) -> Sequence[Result]:
        from distill.models.likelihood import loglikelihoods

        pairs = [(request.messages, request.continuation or "") for request in requests]
        values = loglikelihoods(
            loaded.model, loaded.tokenizer, loaded.template, pairs, watch=lambda done: self._watch(done, "")
        )
        return [value if isinstance(value, ProviderError) else _likelihood(value) for value in values]


def _likelihood(scored: ContinuationScores) -> Reply:
    """The sum, how each token fared and how long it is; four decimals of a nat are as much as batches agree on."""
    nats = [round(one, 4) for one in scored.logprobs]
    tokens = {"logprobs": nats, "agrees": sum(scored.agrees), "widths": list(scored.widths)}
    return Reply(loglikelihood=scored.total, raw=tokens)


def untrained_base(student_folder: Path, *, watch: Watch | None = None) -> InProcess:
    """The student before training: its pruned base without the adapter. Raises `ModelError` where there is none."""
    identity = Endpoint(model="base", fingerprint=base_fingerprint(student_folder))
    return InProcess(lambda: _student(student_folder, adapter=False), identity, watch=watch)


def base_fingerprint(student_folder: Path) -> str:
    """SHA-256 in hex over what the student was before training. Raises `ModelError`."""
    info = {name: value for name, value in read_base(student_folder).items() if name != "model"}
    return json_sha256({**info, "adapter": None})


def trained_student(student_folder: Path, *, watch: Watch | None = None) -> InProcess:
    """The student. Raises `ModelError` where there is none."""
    identity = Endpoint(model="student", fingerprint=student_fingerprint(student_folder))
    return InProcess(lambda: _student(student_folder, adapter=True), identity, watch=watch)


def local_model(model: str, *, name: str, template: str = "own", watch: Watch | None = None) -> InProcess:
    """A model by its recipe name (embedded, folder, .gguf, Hub id), under a chat template."""
    weights = fingerprint(model)
    identity = weights if template == "own" else json_sha256([weights, template])
    return InProcess(lambda: _whole(model, template), Endpoint(model=name, fingerprint=identity), watch=watch)


def _student(folder: Path, *, adapter: bool) -> LoadedModel:
    from distill.models.loading import load_student

    model, tokenizer = load_student(folder, adapter=adapter)
    return LoadedModel(model, tokenizer, str(read_base(folder)["template"]))


def _whole(model: str, template: str) -> LoadedModel:
    from distill.core.console import say
    from distill.models.loading import load_causal, load_tokenizer, materialise

    folder = materialise(model, say=say)
    return LoadedModel(load_causal(folder), load_tokenizer(folder), template)


def _ignore(done: int, note: str) -> None:
    """Do nothing."""


class Batched:
    """Calls `answer` with batches of at most `batch` requests; it returns one reply or error per request, in order.

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
        """Jobs of the thread, `None` to end it; there is a thread while there is a queue."""

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
            pairs = self._choose()
            for future, _ in pairs:
                self._waiting.pop(future, None)
            outcome = await self._in_thread([request for _, request in pairs])
            for number, (future, _) in enumerate(pairs):
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
