"""Client for a provider's Files and Batches API, over openai's SDK.

A batch is a file of requests that the provider answers within a day, usually at half the price. Its answers come as a
file too, in any order, and beside it one with what went wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from distill.core.redaction import strike
from distill.engine.providers import ProviderError, Reply, one_line
from distill.errors import EndpointError
from distill.types import Endpoint, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from distill.engine.providers.openai import OpenAIProvider


REQUESTS_A_BATCH = 50_000
"""OpenAI's limit of requests per batch (platform.openai.com/docs/api-reference/batch/create, `input_file_id`)."""
BYTES_A_BATCH = 200_000_000
"""The same page: an input file can be up to 200 MB in size."""
COMPLETION_WINDOW = "24h"
"""The only one there is (same page)."""
OVER = frozenset({"completed", "failed", "expired", "cancelled"})
"""Final statuses of a batch (platform.openai.com/docs/guides/batch, "Check the status of a batch")."""
ATTEMPTS = 5
"""Calls of one method, the first included, before an outage counts as one."""
PAGE = 100
"""Batches asked for at once, which is the most."""

_NO_RESPONSE = frozenset({"connection", "refused", "timeout", "malformed"})

Result: TypeAlias = "Reply | ProviderError"


@dataclass(frozen=True, slots=True)
class BatchRefusal:
    """Why a provider refused a batch as a whole, or one line of it."""

    code: str
    message: str
    line: int | None = None
    """Line of the input file, from 1; `None` where no line is at fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """Status of a batch as its provider reports it."""

    status: str
    completed: int = 0
    """Requests that were answered."""
    failed: int = 0
    total: int = 0
    output_file: str | None = None
    error_file: str | None = None
    refused: tuple[BatchRefusal, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in OVER


class BatchJobs:
    """The batches of one model behind one address.

    Bodies, answers and refusals are the provider's own, so that a question is the same one by either way. Every method
    raises `EndpointError` where no call can succeed (401, 403, 404, no credit), and `ProviderError` where this one did
    not: a transient one after `ATTEMPTS` calls. No error has the key in it. `first_wait_seconds` doubles at each wait.
    """

    def __init__(self, provider: OpenAIProvider, *, first_wait_seconds: float = 1.0) -> None:
        self._provider = provider
        self._first_wait_seconds = first_wait_seconds
        self._client: AsyncOpenAI | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The provider's identity, which enters every key."""
        return self._provider.endpoint

    @property
    def url(self) -> str:
        """The address, to be shown."""
        return self._provider.shown_url

    def line(self, of: str, request: Request) -> tuple[str, bytes]:
        """The method's path, and a request's line of the input file. Raises a fatal `ProviderError` for a likelihood.

        A batch holds requests of one path and one model only.
        """
        path, body = self._provider.body(request)
        line = {"custom_id": of, "method": "POST", "url": f"/v1{path}", "body": body}
        return f"/v1{path}", json.dumps(line).encode("ascii") + b"\n"

    def result(self, line: bytes) -> tuple[str, Result] | None:
        """The key in a line of an output or error file, and what came of it; `None` for what is no such line."""
        try:
            row = json.loads(strike(line.decode("utf-8", "replace")))
            of, response, error = str(row["custom_id"]), row.get("response"), row.get("error")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if not isinstance(response, dict):
            code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
            reason = one_line(str(code or "unfinished"), 100)
            return of, ProviderError(reason, str(message or "no response"), transient=True)
        status = response.get("status_code", 200)
        try:
            body = json.dumps(response.get("body"))
            if status == 200:
                return of, self._provider.read(body, {})
            return of, self._provider.refusal(status if isinstance(status, int) else 502, {}, body)
        except ProviderError as failure:
            return of, failure

    async def upload(self, name: str, lines: Sequence[bytes]) -> str:
        """Upload an input file under our name; the provider's id for it."""
        with self._translating("its files", "it may have no Batch API; collect with mode: live"):
            file = (file_name(name), b"".join(lines), "application/jsonl")
            return (await self._here().files.create(file=file, purpose="batch")).id

    async def create(self, name: str, file_id: str, path: str) -> str:
        """Begin a batch under our name; the provider's id for it.

        The client's own retries are off here: a call that broke off may have begun one, which would be paid twice. So
        the list of batches is asked before another call.
        """
        batches = self._here().with_options(max_retries=0).batches
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._translating("its batches", "it may have no Batch API; collect with mode: live"):
                    fixed: Any = {"endpoint": path, "completion_window": COMPLETION_WINDOW}
                    return (await batches.create(input_file_id=file_id, metadata={"distill": name}, **fixed)).id
            except ProviderError as error:
                if not error.transient or attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(max(self._first_wait_seconds * 2 ** (attempt - 1), error.retry_after or 0))
            if (batch_id := await self.find_batch(name)) is not None:
                return batch_id
        raise AssertionError("the last attempt returns or raises")

    async def find_file(self, name: str) -> str | None:
        """The id of an input file that was uploaded under this name, whether or not its upload was confirmed."""
        with self._translating("its files", "check base_url, which usually ends in /v1"):
            async for file in self._here().files.list(purpose="batch"):
                if file.filename == file_name(name):
                    return file.id
        return None

    async def find_batch(self, name: str) -> str | None:
        """The id of a batch that was begun under this name, whether or not that was confirmed."""
        with self._translating("its batches", "check base_url, which usually ends in /v1"):
            async for batch in self._here().batches.list(limit=PAGE):
                if (batch.metadata or {}).get("distill") == name:
                    return batch.id
        return None

    async def status(self, batch_id: str) -> BatchStatus:
        """The status of a batch."""
        with self._translating(f"batch {batch_id}", "set the key of the account that submitted it"):
            batch = await self._here().batches.retrieve(batch_id)
        counts, errors = batch.request_counts, batch.errors.data if batch.errors else None
        return BatchStatus(
            status=batch.status,
            completed=counts.completed if counts else 0,
            failed=counts.failed if counts else 0,
            total=counts.total if counts else 0,
            output_file=batch.output_file_id,
            error_file=batch.error_file_id,
            refused=tuple(
                BatchRefusal(error.code or "", one_line(error.message or ""), error.line) for error in errors or ()
            ),
        )

    async def output(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The lines of an output or error file, as they come."""
        with self._translating(
            f"file {file_id}", "set the key of the account that submitted it; a file may have expired"
        ):
            async for line in self._provider.lines(f"/files/{quote(file_id, safe='')}/content"):
                yield line

    async def cancel(self, batch_id: str) -> None:
        """Ask for nothing more of a batch; it ends within minutes, and what was answered is kept and paid."""
        with self._translating(f"batch {batch_id}", "set the key of the account that submitted it"):
            await self._here().batches.cancel(batch_id)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        await self._provider.close()

    def _here(self) -> AsyncOpenAI:
        if self._client is None:
            import httpx2
            from openai import AsyncOpenAI

            from distill.engine.batch.transport import BASE, Transport

            client = httpx2.AsyncClient(transport=Transport(self._provider), follow_redirects=False)
            self._client = AsyncOpenAI(
                api_key="in the provider", base_url=BASE, max_retries=ATTEMPTS - 1, http_client=client
            )
        return self._client

    @contextmanager
    def _translating(self, what: str, advice: str) -> Iterator[None]:
        """Translate the client's exceptions; `advice` is for HTTP 404."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            refusal = self._provider.refusal(error.status_code, error.response.headers, error.response.text)
            raise self._translated(refusal, what, advice) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._translated(cause, what, advice) from error
        except ProviderError as error:
            raise self._translated(error, what, advice) from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            raise ProviderError("malformed", f"{self.url} says of {what} nothing readable", transient=True) from error

    def _translated(self, error: BaseException, what: str, advice: str) -> Exception:
        """The error that a failed call about a file or a batch amounts to."""
        detail = error.detail if isinstance(error, ProviderError) else type(error).__name__
        if not isinstance(error, ProviderError) or error.reason in _NO_RESPONSE:
            return ProviderError("connection", f"cannot reach {what} at {self.url}: {detail}", transient=True)
        if error.reason == "http_404":
            reply = detail.removeprefix(f"{self.url} answers ").rpartition("; ")[0]
            return EndpointError(f"{self.url} does not know {what} ({reply}); {advice}")
        return EndpointError(detail) if error.fatal else error


def file_name(name: str) -> str:
    """The name of a batch's input file at the provider."""
    return f"distill-{name}.jsonl"
