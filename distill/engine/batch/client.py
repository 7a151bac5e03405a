"""Client for a provider's Files and Batches API, over openai's SDK.

A batch is a file of requests that the provider answers within a day, usually at half the price. Its answers come as a
file too, in any order, with a second file of errors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

from distill.core.redaction import strike
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.bounded_numbers import count_of
from distill.errors import DistillError, EndpointError
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
LONGEST_WAIT_SECONDS = 60.0
"""The longest wait between two of them."""
PAGE, MOST_PAGES = 100, 1000
"""Batches or files per page of a list, which is the most, and pages that are read."""
NO_API = "it may have no Batch API; collect with mode: live"
NO_LIST = "check base_url, which usually ends in /v1"
ACCOUNT = "set the key of the account that submitted it"

_NO_RESPONSE = frozenset({"connection", "refused", "timeout", "malformed"})

Result: TypeAlias = "Reply | ProviderError"
T = TypeVar("T")


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
    output_file: str | None = None
    error_file: str | None = None
    refusals: tuple[BatchRefusal, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in OVER


class BatchJobs:
    """The batches of one model behind one address.

    The provider writes the request bodies and reads answers and refusals, so that a question has the same key in both
    modes. Every method raises `EndpointError` where no call can succeed (401, 403, 404, no credit), and `ProviderError`
    where this one did not: a transient one after `attempts` calls. No error has the key in it. `first_wait_seconds`
    doubles at each wait.
    """

    def __init__(self, provider: OpenAIProvider, *, first_wait_seconds: float = 1.0, attempts: int = ATTEMPTS) -> None:
        self._provider = provider
        self._first_wait_seconds = first_wait_seconds
        self._attempts = attempts
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
        """The method's path, and a request's line of the input file, with the id `of`.

        A batch holds requests of one path and one model only. Raises a fatal `ProviderError` for a likelihood.
        """
        path, body = self._provider.body(request)
        line = {"custom_id": of, "method": "POST", "url": f"/v1{path}", "body": body}
        return f"/v1{path}", json.dumps(line).encode("ascii") + b"\n"

    def result(self, line: bytes) -> tuple[str, Result] | None:
        """The key in a line of an output or error file, and its result; `None` for an unreadable line."""
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
        file = (file_name(name), b"".join(lines), "application/jsonl")
        uploaded = await self._call(
            lambda client: client.files.create(file=file, purpose="batch"), what="its files", advice=NO_API
        )
        return self._id(uploaded)

    async def create(self, name: str, file_id: str, path: str) -> str:
        """Begin a batch under our name; the provider's id for it.

        After a failed call the list of batches is read first: a call that broke off may have begun one, and a second
        one would be paid twice.
        """
        fixed: Any = {"endpoint": path, "completion_window": COMPLETION_WINDOW}
        for attempt in range(1, self._attempts + 1):
            try:
                created = await self._call(
                    lambda client: client.batches.create(input_file_id=file_id, metadata={"distill": name}, **fixed),
                    what="its batches",
                    advice=NO_API,
                    attempts=1,
                )
                return self._id(created)
            except ProviderError as error:
                if not error.transient or attempt == self._attempts:
                    raise
                await self._wait(attempt, error)
            if (batch_id := await self.find_batch(name)) is not None:
                return batch_id
        raise AssertionError("the last attempt returns or raises")

    async def find_file(self, name: str) -> str | None:
        """The id of an input file that was uploaded under this name, whether or not its upload was confirmed."""
        return await self._find(
            lambda client: client.files.list(purpose="batch", limit=PAGE),
            "its files",
            lambda file: file.filename == file_name(name),
        )

    async def find_batch(self, name: str) -> str | None:
        """The id of a batch that was begun under this name, whether or not that was confirmed."""
        return await self._find(
            lambda client: client.batches.list(limit=PAGE),
            "its batches",
            lambda batch: bool(batch.metadata) and batch.metadata.get("distill") == name,
        )

    async def _find(self, first: Callable[[Any], Any], what: str, is_ours: Callable[[Any], bool]) -> str | None:
        """The id of the newest of ours in a list, which is read page by page."""

        async def search(client: AsyncOpenAI) -> str | None:
            page = await first(client)
            for _ in range(MOST_PAGES):
                for entry in filter(is_ours, page.data):
                    return self._id(entry)
                if not page.has_next_page():
                    break
                page = await page.get_next_page()
            return None

        return await self._call(search, what=what, advice=NO_LIST)

    async def status(self, batch_id: str) -> BatchStatus:
        """The status of a batch."""
        batch = await self._call(
            lambda client: client.batches.retrieve(batch_id), what=f"batch {batch_id}", advice=ACCOUNT
        )
        counts, errors = batch.request_counts, batch.errors.data if batch.errors else None
        return BatchStatus(
            status=one_line(str(batch.status), 40),
            completed=count_of(counts.completed if counts else 0, most=REQUESTS_A_BATCH) or 0,
            failed=count_of(counts.failed if counts else 0, most=REQUESTS_A_BATCH) or 0,
            output_file=batch.output_file_id,
            error_file=batch.error_file_id,
            refusals=tuple(map(_refusal, errors or ())),
        )

    async def output(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """The lines of an output or error file, as they come."""
        try:
            async for line in self._provider.lines(f"/files/{quote(file_id, safe='')}/content"):
                yield line
        except ProviderError as error:
            raise self._translated(error, f"file {file_id}", f"{ACCOUNT}; a file may have expired") from error

    async def cancel(self, batch_id: str) -> None:
        """Ask for nothing more of a batch; it ends within minutes, and what was answered is kept and paid."""
        await self._call(lambda client: client.batches.cancel(batch_id), what=f"batch {batch_id}", advice=ACCOUNT)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        await self._provider.close()

    async def _call(
        self,
        call: Callable[[AsyncOpenAI], Awaitable[T]],
        *,
        what: str,
        advice: str,
        attempts: int | None = None,
    ) -> T:
        """The response of a call that `what` describes; `advice` is for HTTP 404."""
        for attempt in range(1, (attempts or self._attempts) + 1):
            try:
                return await self._once(call)
            except ProviderError as error:
                if not error.transient or attempt == (attempts or self._attempts):
                    raise self._translated(error, what, advice) from error
                await self._wait(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, call: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        """One call, with the client's exceptions as ours."""
        import openai

        try:
            return await call(self._here())
        except openai.APIStatusError as error:
            raise self._provider.refusal(error.status_code, error.response.headers, error.response.text) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, ProviderError | DistillError):
                raise error.__cause__ from None
            raise ProviderError("connection", type(error.__cause__ or error).__name__, transient=True) from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            raise ProviderError("malformed", "its response has another form", transient=True) from error

    def _here(self) -> AsyncOpenAI:
        if self._client is None:
            import httpx2
            from openai import AsyncOpenAI

            from distill.engine.batch.transport import BASE, Transport

            client = httpx2.AsyncClient(transport=Transport(self._provider), follow_redirects=False)
            self._client = AsyncOpenAI(api_key="in the provider", base_url=BASE, max_retries=0, http_client=client)
        return self._client

    @staticmethod
    def _id(value: Any) -> str:
        """The id of a file or batch. Raises `ProviderError` where it is none."""
        if not isinstance(identity := getattr(value, "id", None), str):
            raise ProviderError("malformed", "no id in the response", transient=True)
        return identity

    async def _wait(self, attempt: int, error: ProviderError) -> None:
        wait_seconds = max(self._first_wait_seconds * 2 ** (attempt - 1), error.retry_after or 0.0)
        await asyncio.sleep(min(wait_seconds, LONGEST_WAIT_SECONDS))

    def _translated(self, error: ProviderError, what: str, advice: str) -> Exception:
        """The error that a failed call about a file or a batch amounts to."""
        if error.reason in _NO_RESPONSE:
            verb = "read" if error.reason == "malformed" else "reach"
            return ProviderError("connection", f"cannot {verb} {what} at {self.url}: {error.detail}", transient=True)
        if error.reason == "http_404":
            return EndpointError(f"{self.url} does not know {what} ({error.reply}); {advice}")
        return EndpointError(error.detail) if error.fatal else error


def _refusal(error: Any) -> BatchRefusal:
    line = count_of(error.line, least=1, most=REQUESTS_A_BATCH)
    return BatchRefusal(one_line(str(error.code or ""), 100), one_line(str(error.message or "")), line)


def file_name(name: str) -> str:
    """The name of a batch's input file at the provider."""
    return f"distill-{name}.jsonl"
