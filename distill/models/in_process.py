"""Provider for a model in this process; loads at the first request, so that a replay loads nothing."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from distill.core import console
from distill.core.hashing import canonical, json_sha256
from distill.core.weights import ORIGIN, fingerprint, read_base, student_fingerprint
from distill.engine.providers import ProviderError, Reply
from distill.errors import DistillError
from distill.types import Endpoint, Message, Request

if TYPE_CHECKING:
    from distill.models.likelihood import ContinuationScores, PairScores


GATHER_SECONDS = 0.02
"""Time without a new request after which a batch that is not full starts: a few times the journal's group commit."""
Result: TypeAlias = Reply | ProviderError
_Text: TypeAlias = tuple[tuple[Message, ...], str]
_Job: TypeAlias = tuple[Sequence[Request], Future[Sequence[Result | DistillError]]]
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

    `endpoint` must identify everything in `load` that can change an answer. The only seed is `sampling.seed`, since any
    other would be missing from the request's key.
    """

    def __init__(self, load: Callable[[], LoadedModel], endpoint: Endpoint, *, watch: Watch | None = None) -> None:
        self.endpoint = endpoint
        self._load = load
        self._watch = watch or _ignore
        self._loaded: LoadedModel | None = None
        self._known: dict[_Text, ContinuationScores] = {}
        self._batched = Batched(self._replies, endpoint)

    async def send(self, request: Request) -> Reply:
        """Wait for the batch that takes this request. Raises `ProviderError` for what this model cannot answer."""
        return await self._batched.send(request)

    async def close(self) -> None:
        """End the thread; the model stays."""
        await self._batched.close()

    def watched(self, watch: Watch) -> InProcess:
        """The same, with another watch."""
        self._watch = watch
        return self

    def release(self) -> None:
        """Let go of the model."""
        if self._loaded is not None:
            from distill.models.device import free_memory

            self._loaded = None
            free_memory()

    def _replies(self, requests: Sequence[Request]) -> Sequence[Result]:
        """Results of one batch, whose requests `Batched` has chosen to be of one kind."""
        ask = self._likelihoods if requests[0].kind == "likelihood" else self._answers
        results = ask(requests)
        self._watch(0, "")
        return results

    def loaded(self) -> LoadedModel:
        """The model, loaded if it is not."""
        self._watch(0, "loading the model" if self._loaded is None else "")
        self._loaded = self._loaded or self._load()
        return self._loaded

    def know(self, request: Request, scores: ContinuationScores) -> None:
        """Take the scores of a likelihood from a pass that has read the same text already."""
        self._known[_text_of(request)] = scores

    def _answers(self, requests: Sequence[Request]) -> Sequence[Result]:
        from distill.models.generation import answer

        loaded, started = self.loaded(), time.monotonic()

        def watch(done: int, tokens: int) -> None:
            self._watch(done, f"{tokens / max(time.monotonic() - started, 1e-3):.0f} tok/s")

        return answer(loaded.model, loaded.tokenizer, loaded.template, requests, watch=watch)

    def _likelihoods(self, requests: Sequence[Request]) -> Sequence[Result]:
        from distill.models.likelihood import loglikelihoods

        texts = list(map(_text_of, requests))
        values: dict[_Text, ContinuationScores | ProviderError] = {
            text: self._known[text] for text in texts if text in self._known
        }
        if unknown := [text for text in texts if text not in values]:
            loaded = self.loaded()
            scores = loglikelihoods(
                loaded.model, loaded.tokenizer, loaded.template, unknown, watch=lambda done: self._watch(done, "")
            )
            values |= dict(zip(unknown, scores, strict=True))
        results = (values[text] for text in texts)
        return [value if isinstance(value, ProviderError) else _likelihood(value) for value in results]


class Pair:
    """The differences of a student's distributions from its teacher's on given answers; both models stay in memory.

    Each learns from the pass what its own likelihoods of these answers are.
    """

    def __init__(self, teacher: InProcess, student: InProcess, *, watch: Watch | None = None) -> None:
        prints = [teacher.endpoint.fingerprint, student.endpoint.fingerprint]
        self.endpoint = Endpoint(model="pair", fingerprint=json_sha256(prints))
        self._teacher, self._student, self._watch = teacher, student, watch or _ignore
        self._batched = Batched(self._replies, self.endpoint)

    async def send(self, request: Request) -> Reply:
        """Wait for the batch that takes this request, a likelihood. Raises `ProviderError`."""
        return await self._batched.send(request)

    async def close(self) -> None:
        """End the thread; the models stay."""
        await self._batched.close()

    def _replies(self, requests: Sequence[Request]) -> Sequence[Result]:
        from distill.models.likelihood import PairScores, pair_scores

        def watch(done: int) -> None:
            self._watch(done // 2, "")  # a flow asks two

        texts = list(map(_text_of, requests))
        values = pair_scores(self._teacher.loaded(), self._student.loaded(), texts, watch=watch)
        self._watch(0, "")
        for request, value in zip(requests, values, strict=True):
            if isinstance(value, PairScores):
                self._teacher.know(request, value.teacher)
                self._student.know(request, value.student)
        return [value if isinstance(value, ProviderError) else _difference(value) for value in values]


def _text_of(request: Request) -> _Text:
    return request.messages, request.continuation or ""


def _difference(scored: PairScores) -> Reply:
    """The scores per token, rounded as likelihoods are."""
    names = ("divergence", "acceptance")
    tokens = {name: [round(one, 4) for one in getattr(scored, name)] for name in names}
    return Reply(loglikelihood=scored.student.total, raw={**tokens, "same_first": sum(scored.same_first)})


def _likelihood(scored: ContinuationScores) -> Reply:
    """The sum and the scores per token; rounded to four decimals of a nat, which is as far as batches agree."""
    nats = [round(one, 4) for one in scored.logprobs]
    tokens = {"logprobs": nats, "agrees": sum(scored.agrees), "widths": list(scored.widths)}
    return Reply(loglikelihood=scored.total, raw=tokens)


def untrained_base(student_folder: Path, *, watch: Watch | None = None) -> InProcess:
    """The student before training: its pruned base without the adapter. Raises `ModelError` where there is none."""
    identity = Endpoint(model="base", fingerprint=base_fingerprint(student_folder))
    return InProcess(partial(load_student, student_folder, adapter=False), identity, watch=watch)


def base_fingerprint(student_folder: Path) -> str:
    """SHA-256 in hex that identifies the student before training. Raises `ModelError`."""
    info = {name: value for name, value in read_base(student_folder).items() if name not in ORIGIN}
    return json_sha256({**info, "adapter": None})


def trained_student(student_folder: Path, *, watch: Watch | None = None) -> InProcess:
    """The student. Raises `ModelError` where there is none."""
    identity = Endpoint(model="student", fingerprint=student_fingerprint(student_folder))
    return InProcess(partial(load_student, student_folder), identity, watch=watch)


def local_model(model: str, *, name: str, template: str = "own", watch: Watch | None = None) -> InProcess:
    """A model by its recipe name (embedded, folder, .gguf, Hub id), under a chat template."""
    weights = fingerprint(model)
    identity = weights if template == "own" else json_sha256([weights, template])
    load = partial(load_whole, model, template, say=console.say)
    return InProcess(load, Endpoint(model=name, fingerprint=identity), watch=watch)


def load_student(folder: Path, *, adapter: bool = True) -> LoadedModel:
    """A student with the chat template of its training, or its base without the adapter. Raises `ModelError`."""
    from distill.models import loading

    model, tokenizer = loading.load_student(folder, adapter=adapter)
    return LoadedModel(model, tokenizer, str(read_base(folder)["template"]))


def load_whole(model: str, template: str, *, say: console.Say) -> LoadedModel:
    """A model by its recipe name, under a chat template. Raises `ModelError`."""
    from distill.models import loading

    folder = loading.materialise(model, say=say)
    return LoadedModel(loading.load_causal(folder), loading.load_tokenizer(folder), template)


def _ignore(done: int, note: str) -> None:
    """Do nothing."""


class Batched:
    """Calls `answer` with batches of at most `batch` requests; it returns one reply or error per request, in order.

    A batch holds one kind and one sampling only, those of the first request that waits. Its requests are sorted longest
    first, then by content, so that the same requests make the same batch in whatever order they arrive. A
    `DistillError` of `answer` stops the run as it is; any other exception stops it too, as one line.
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
        self._jobs: queue.SimpleQueue[_Job | None] | None = None
        """Batches for the thread, `None` to end it; there is a thread while there is a queue."""

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
            pairs = self._next_batch()
            for future, _ in pairs:
                self._waiting.pop(future, None)
            results = await self._in_thread([request for _, request in pairs])
            for (future, _), result in zip(pairs, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _gather(self) -> None:
        """Wait until a batch is full, or nothing more arrives."""
        with suppress(TimeoutError):
            while len(self._waiting) < self._batch:
                self._arrived.clear()
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._arrived.wait()

    def _next_batch(self) -> list[tuple[asyncio.Future[Reply], Request]]:
        first = next(iter(self._waiting.values()))
        alike = [pair for pair in self._waiting.items() if _group(pair[1]) == _group(first)]
        return sorted(alike[: self._batch], key=lambda pair: _order(pair[1]))

    async def _in_thread(self, requests: Sequence[Request]) -> Sequence[Result | DistillError]:
        """A result for each request, computed in our own thread, which never keeps the process alive."""
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=self._work, args=[self._jobs], name="batched", daemon=True).start()
        future: Future[Sequence[Result | DistillError]] = Future()
        self._jobs.put((requests, future))
        return await asyncio.wrap_future(future)

    def _work(self, jobs: queue.SimpleQueue[_Job | None]) -> None:
        """Run the thread: answer batches until there is a `None`."""
        while (job := jobs.get()) is not None:
            requests, future = job
            if future.set_running_or_notify_cancel():
                future.set_result(self._results(requests))

    def _results(self, requests: Sequence[Request]) -> Sequence[Result | DistillError]:
        error: ProviderError | DistillError
        try:
            replies = self._answer(requests)
            if len(replies) == len(requests):
                return replies
            detail = f"the model gave {len(replies)} replies to {len(requests)} requests"
            error = ProviderError("model", detail, fatal=True)
        except DistillError as fault:
            error = fault
        except Exception as fault:  # noqa: BLE001 - whatever a model raises would meet every other batch as well
            detail = f"the model failed: {type(fault).__name__}: {fault}"
            error = ProviderError("model", detail, fatal=True)
        return [error] * len(requests)

    async def close(self) -> None:
        """End the thread after its batch."""
        if self._batches is not None:
            self._batches.cancel()
            self._batches = None
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None
        self._arrived = asyncio.Event()  # the old one belongs to the loop that waited on it


def _group(request: Request) -> tuple[Any, ...]:
    return request.kind, request.sampling, request.prompt is None


def _order(request: Request) -> tuple[int, str]:
    content = canonical(request)
    return -len(content), content
