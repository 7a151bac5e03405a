"""Provider for OpenAI-compatible endpoints, over aiohttp: chat completions, or completions for a raw prompt.

A run's requests, a provider's batches and `doctor` all reach endpoints through `OpenAIProvider.exchange`, so that one
policy applies: no redirect is followed, the body's bytes and the whole time are bounded, and known secrets are struck
out of every response.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from distill.core import console, credentials, event_loop
from distill.core.hashing import canonical, text_sha256
from distill.core.redaction import learn, strike
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.addresses import join, normalise_url, proxy_for, request_headers, secrets_in
from distill.engine.providers.rate_limit_headers import report, retry_after_seconds
from distill.engine.providers.refusals import TRANSIENT, advice, message_of
from distill.engine.providers.replies import (
    FILTERED_WORDS,
    answer_in,
    cut_at_stop,
    encoding_of,
    error_in,
    json_object,
    status_of,
    usage_of,
)
from distill.errors import RecipeError
from distill.text.chat_replies import other_model
from distill.types import Endpoint, Request, Sampling

if TYPE_CHECKING:
    import aiohttp


JSON = "application/json"
LARGEST_BODY_BYTES = 32 * 2**20
"""A longer response is refused: no model's answer is this long."""
CONNECT_SECONDS = 15.0
LARGEST_FILE_BYTES = 4 * 2**30
"""The largest file of a batch's output: twenty times the largest input."""
FILE_SECONDS = 3600.0
"""The longest download of such a file."""
SLOW_SECONDS, SLOW_BYTES = 30.0, 1000
"""A download is given up when, after this time, it has brought fewer bytes per second."""

_BUSY = {429, 503}
_WARNED: set[tuple[str, str]] = set()
"""Addresses and models of which a warning was printed that another model answers."""
_SAMPLING = tuple(field.name for field in fields(Sampling) if field.name != "extra_body")


class OpenAIProvider:
    """One model at one address.

    `endpoint` is the identity that enters the keys; by default it is the model, the normalised address and the
    `revision`, if any. `api_key` and the values of `headers` are secrets: they appear in no error, no `repr` and no
    answer. So are the variables that `base_url` or an extra body names (`$NAME`), which are filled in when a request is
    sent. `extra_body` is merged into every request's body (`None` removes a field) and, as it can change answers, into
    the identity. `timeout_seconds` bounds one send. The environment's proxies are used, but never for a loopback
    address. Raises `RecipeError` for options that cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        endpoint: Endpoint | None = None,
        revision: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout_seconds: float = 600.0,
        largest_body_bytes: int = LARGEST_BODY_BYTES,
    ) -> None:
        self._extra_body = _checked_extra(extra_body or {})
        if api_key and "@" in urlsplit(base_url.strip()).netloc:
            raise RecipeError("base_url holds a user and there is a key besides; HTTP takes one of them: leave one out")
        self.base_url = base_url
        self.shown_url = normalise_url(base_url)
        self.model = model
        identity = endpoint or Endpoint(model=model, url=self.shown_url, revision=revision)
        self.endpoint = _with_extra(identity, self._extra_body)
        self.headers = request_headers(api_key, headers or {})
        """The headers of every request; secret."""
        self.account = text_sha256(canonical([self.shown_url, model, self.headers]))
        """Equal for providers that share the endpoint's limits: same address, model and key. Never written anywhere."""
        for secret in (api_key or "", *(headers or {}).values(), *secrets_in(base_url)):
            learn(secret)
        self._timeout_seconds = timeout_seconds
        self._largest_body_bytes = largest_body_bytes
        self._addresses: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown_url!r}, {self.model!r})"

    async def send(self, request: Request) -> Reply:
        """Send the request once. Raises `ProviderError`."""
        path, body = self.body(request)
        status, headers, reply = await self.exchange("POST", path, json.dumps(body).encode("ascii"))
        if status != 200:
            raise self.refusal(status, headers, reply)
        return cut_at_stop(self.read(reply, headers), request.sampling.stop)

    async def exchange(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        *,
        kind: str = JSON,
        largest_body_bytes: int | None = None,
        timeout_seconds: float | None = None,
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of one response; `kind` is the media type of `data`, and `path` may hold a query.

        Raises `ProviderError` where there is no response, or one that is too long.
        """
        import aiohttp

        options: dict[str, Any] = {"data": data} if kind == JSON else {"data": data, "headers": {"Content-Type": kind}}
        if timeout_seconds is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        largest = largest_body_bytes or self._largest_body_bytes
        try:
            async with self._here().request(method, self._address(path), allow_redirects=False, **options) as response:
                return response.status, response.headers, await _body_text(response, largest)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._broken(error) from error

    async def lines(self, path: str) -> AsyncGenerator[bytes, None]:
        r"""The non-empty lines of a file, as they come; only b"\n" ends a line, as U+2028 may be part of a text.

        Raises `ProviderError`, also for a status other than 200, for a line longer than a body may be, and for a file
        longer than `LARGEST_FILE_BYTES`.
        """
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=FILE_SECONDS, sock_connect=CONNECT_SECONDS)
        rest, total, started = bytearray(), 0, time.monotonic()
        try:
            async with self._here().get(self._address(path), allow_redirects=False, timeout=timeout) as response:
                if response.status != 200:
                    reply = await _body_text(response, self._largest_body_bytes)
                    raise self.refusal(response.status, response.headers, reply)
                async for chunk in response.content.iter_any():
                    total += len(chunk)
                    rest += chunk
                    if len(rest) > self._largest_body_bytes + len(chunk) or total > LARGEST_FILE_BYTES:
                        raise ProviderError("too_large", f"{total} bytes of a file are read, and it goes on")
                    if (seconds := time.monotonic() - started) > SLOW_SECONDS and total < SLOW_BYTES * seconds:
                        raise ProviderError(
                            "timeout", f"only {total} bytes of a file in {seconds:.0f} s", transient=True
                        )
                    if b"\n" in chunk:
                        *whole, rest = rest.split(b"\n")
                        for line in whole:
                            if line.strip():
                                yield bytes(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._broken(error) from error
        if rest.strip():
            yield bytes(rest)

    def _address(self, path: str) -> str:
        """The address of a method, with its variables filled in."""
        if path not in self._addresses:
            self._addresses[path] = join(credentials.filled_url(self.base_url), path)
        return self._addresses[path]

    def body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The method's path and the JSON body of a request. Raises a fatal `ProviderError` for a likelihood."""
        if request.kind != "answer":
            detail = f"{self.shown_url} answers questions, but cannot measure likelihoods; use a local model for that"
            raise ProviderError("unsupported", detail, fatal=True)
        body: dict[str, Any] = {"model": self.model}
        if request.prompt is None:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        else:
            body["prompt"] = request.prompt
        sampling = request.sampling
        for name in _SAMPLING:
            if (value := getattr(sampling, name)) not in (None, ()):
                body[name] = value
        if request.prompt is not None and body.pop("logprobs", None):
            body["logprobs"] = body.pop("top_logprobs", 1)  # /completions takes a number instead of a boolean
        for extra_body in (sampling.extra_body, self._extra_body):
            if extra_body:
                body |= credentials.filled(extra_body)
        if None in body.values():
            body = {name: value for name, value in body.items() if value is not None}
        return "/chat/completions" if request.prompt is None else "/completions", body

    def _here(self) -> aiohttp.ClientSession:
        """The session of the running event loop; that of an earlier loop cannot be used."""
        import aiohttp

        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the engine's slots are the limit
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds, sock_connect=CONNECT_SECONDS),
                headers=self.headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=proxy_for(self.base_url),
            )
        return self._session

    def read(self, reply: str, headers: Mapping[str, str]) -> Reply:
        """The reply in the body of an HTTP 200, or in the stream that it is. Raises `ProviderError`."""
        body, raw_json = json_object(reply)
        if (error := error_in(body)) is not None:
            raise self.refusal(status_of(error), headers, json.dumps({"error": error}))
        text, finish = answer_in(body)
        self._check_model(body)
        usage = usage_of(body.get("usage"), text)
        return Reply(text=text, finish=finish, usage=usage, raw=body, raw_json=raw_json, report=report(headers))

    def _check_model(self, body: Mapping[str, Any]) -> None:
        """Warn once in a process where the endpoint answers as another model."""
        if (other := other_model(body, self.model)) and (self.base_url, self.model) not in _WARNED:
            _WARNED.add((self.base_url, self.model))
            console.warn(
                f'{self.shown_url} answers as "{one_line(other, 80)}" where "{self.model}" was asked; check'
                " teacher.model (sessions get the label other_model)"
            )

    def refusal(self, status: int, headers: Mapping[str, str], body: str) -> ProviderError:
        """The error for an HTTP status other than 200: transient, permanent, or fatal unless others are answered.

        `headers` looks names up without regard to case.
        """
        message, codes = message_of(body)
        is_wrapped = status == 200  # an error in the body of a success
        reply, words = f"HTTP {status}: {one_line(message, 160)}", f"{codes} {message}"
        reason = f"http_{502 if is_wrapped else status}"
        if status in {400, 403} and any(word in words.lower() for word in FILTERED_WORDS):
            return ProviderError("filtered", reply)
        if hint := advice(status, body, words, model=self.model) or _elsewhere(status, headers):
            return ProviderError(reason, f"{self.shown_url} answers {reply}", fatal=True, reply=reply, hint=hint)
        return ProviderError(
            reason,
            reply,
            transient=is_wrapped or status in TRANSIENT or status >= 500,
            retry_after=retry_after_seconds(headers),
            busy=status in _BUSY,
            report=report(headers),
        )

    def _broken(self, error: Exception) -> ProviderError:
        """The error for a client's exception; transient unless it is an untrusted certificate or a bad address."""
        import aiohttp

        reply = one_line(str(error) or type(error).__name__, 160)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return ProviderError("certificate", f"{self.shown_url} is not trusted: {reply}", fatal=True)
        if isinstance(error, aiohttp.InvalidURL):
            return ProviderError("address", f"{self.shown_url} is no address: {reply}; check base_url", fatal=True)
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            detail = f"cannot connect to {self.shown_url}: {reply}; check base_url and that its server is running"
            return ProviderError("refused", detail, transient=True)
        if isinstance(error, TimeoutError):
            return ProviderError("timeout", f"no answer within {self._timeout_seconds:g} s", transient=True)
        if isinstance(error, aiohttp.ClientPayloadError):
            return ProviderError("malformed", f"the response was cut off: {reply}", transient=True)
        return ProviderError("connection", f"the connection broke: {reply}", transient=True)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        if self._session is not None and self._loop is asyncio.get_running_loop():
            await self._session.close()
        self._session = self._loop = None


def call(
    base_url: str,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    api_key: str | None = None,
    timeout_seconds: float,
) -> tuple[int, str]:
    """Status and text of one exchange, from synchronous code. Raises `ProviderError` where there is no response."""

    async def once() -> tuple[int, str]:
        provider = OpenAIProvider(base_url, "", api_key=api_key, timeout_seconds=timeout_seconds)
        try:
            data = None if body is None else json.dumps(body).encode("ascii")
            status, _, reply = await provider.exchange(method, path, data)
            return status, reply
        finally:
            await provider.close()

    return event_loop.run(once())


def _checked_extra(extra_body: Mapping[str, Any]) -> dict[str, Any]:
    if extra_body.get("stream"):
        raise RecipeError("extra_body asks for a stream; take stream out, answers are read whole")
    if extra_body.get("n") not in (None, 1):
        raise RecipeError(
            "extra_body asks for several answers per request, of which only one would be kept; take n out"
        )
    return dict(extra_body)


def _with_extra(endpoint: Endpoint, extra_body: Mapping[str, Any]) -> Endpoint:
    """The endpoint with its extra body in its identity."""
    if not extra_body:
        return endpoint
    both = canonical({"fingerprint": endpoint.fingerprint, "extra_body": extra_body})
    return replace(endpoint, fingerprint=text_sha256(both))


def _elsewhere(status: int, headers: Mapping[str, str]) -> str:
    """Advice for a redirect, which is not followed; else empty."""
    if not 300 <= status < 400:
        return ""
    return f"it points to {one_line(headers.get('Location', 'nowhere'), 100)}; put that address into base_url"


async def _body_text(response: aiohttp.ClientResponse, largest: int) -> str:
    """The body as text, without known secrets."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > largest:
            response.close()
            raise ProviderError("too_large", f"the response is longer than {largest} bytes")
    return strike(data.decode(encoding_of(bytes(data[:4]), response.headers.get("Content-Type", "")), "replace"))
