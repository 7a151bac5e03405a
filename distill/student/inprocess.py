"""A model in this process as a provider: loaded at the first request, so that replaying a journal loads nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from distill.embedded import fingerprint, read_base, student_fingerprint
from distill.fingerprints import json_sha256
from distill.providers import ProviderError, Reply
from distill.providers.batched import Batched
from distill.types import Endpoint, Request

if TYPE_CHECKING:
    from distill.student.likelihood import Scored

Watch: TypeAlias = Callable[[int, str], None]
"""Is told how many requests of the running batch are answered, and one short note; (0, "") at its end."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to answer."""

    model: Any
    tokenizer: Any
    template: str


class InProcess:
    """Answers and likelihoods of one model, in batches; `release` frees its memory, and a later request loads it again.

    `endpoint` must tell everything of `load` that can change an answer. Another seed than the request's own enters no
    key, so there is none: draws depend on `sampling.seed`.
    """

    def __init__(
        self, load: Callable[[], Loaded], endpoint: Endpoint, *, batch: int = 32, watch: Watch | None = None
    ) -> None:
        self.endpoint = endpoint
        self._load = load
        self._batch = batch
        self._watch = watch or _ignore
        self._loaded: Loaded | None = None
        self._refused: dict[Request, ProviderError] = {}
        self._batched = Batched(self._replies, endpoint, batch=batch)

    async def send(self, request: Request) -> Reply:
        """Wait for the batch that takes this request. Raises `ProviderError` for what this model cannot answer."""
        reply = await self._batched.send(request)
        if (error := self._refused.pop(request, None)) is not None:
            raise error
        return reply

    async def close(self) -> None:
        """End the thread; the model stays."""
        await self._batched.close()

    def release(self) -> None:
        """Let go of the model."""
        if self._loaded is not None:
            from distill.student.freeing import free_memory

            self._loaded = None
            free_memory()

    def _replies(self, requests: Sequence[Request]) -> list[Reply]:
        """Of one batch, which Batched makes of one kind."""
        self._watch(0, "loading the model" if self._loaded is None else "")
        self._loaded = self._loaded or self._load()
        ask = self._likelihoods if requests[0].kind == "likelihood" else self._answers
        replies = []
        for request, result in zip(requests, ask(self._loaded, requests), strict=True):
            if isinstance(result, ProviderError):
                self._refused[request] = result
            replies.append(result if isinstance(result, Reply) else Reply())
        self._watch(0, "")
        return replies

    def _answers(self, loaded: Loaded, requests: Sequence[Request]) -> Sequence[Reply | ProviderError]:
        from distill.student.generate import answer

        started = time.monotonic()

        def watch(done: int, tokens: int) -> None:
            self._watch(done, f"{tokens / max(time.monotonic() - started, 1e-3):.0f} tok/s")

        return answer(loaded.model, loaded.tokenizer, loaded.template, requests, batch_size=self._batch, watch=watch)

    def _likelihoods(self, loaded: Loaded, requests: Sequence[Request]) -> list[Reply | ProviderError]:
        from distill.student.likelihood import loglikelihoods

        pairs = [(request.messages, request.continuation or "") for request in requests]
        values = loglikelihoods(
            loaded.model, loaded.tokenizer, loaded.template, pairs, watch=lambda done: self._watch(done, "")
        )
        return [value if isinstance(value, ProviderError) else _likelihood(value) for value in values]


def _likelihood(scored: Scored) -> Reply:
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
    told = {name: value for name, value in read_base(student_folder).items() if name != "model"}
    return json_sha256({**told, "adapter": None})


def trained_student(student_folder: Path, *, watch: Watch | None = None) -> InProcess:
    """The student. Raises `ModelError` where there is none."""
    identity = Endpoint(model="student", fingerprint=student_fingerprint(student_folder))
    return InProcess(lambda: _student(student_folder, adapter=True), identity, watch=watch)


def local_model(model: str, *, name: str, template: str = "own", watch: Watch | None = None) -> InProcess:
    """A model by its recipe name (embedded, folder, .gguf, Hub id), under a chat template."""
    weights = fingerprint(model)
    identity = weights if template == "own" else json_sha256([weights, template])
    return InProcess(lambda: _whole(model, template), Endpoint(model=name, fingerprint=identity), watch=watch)


def _student(folder: Path, *, adapter: bool) -> Loaded:
    from distill.student.models import load_student

    model, tokenizer = load_student(folder, adapter=adapter)
    return Loaded(model, tokenizer, str(read_base(folder)["template"]))


def _whole(model: str, template: str) -> Loaded:
    from distill.console import say
    from distill.student.models import load_causal, load_tokenizer, materialise

    folder = materialise(model, say=say)
    return Loaded(load_causal(folder), load_tokenizer(folder), template)


def _ignore(done: int, note: str) -> None:
    """Tell nobody."""
