"""Any OpenAI-compatible endpoint: messages to /chat/completions, a raw prompt to /completions, over aiohttp.

`OpenAIProvider.exchange` is the only way to an endpoint: a run's requests, a provider's batches and `doctor` all go
through it, so that one policy holds for them. No redirect is followed, the body's bytes and the whole time are bounded,
and known secrets are struck out of whatever comes back.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from distill.core import credentials, event_loop
from distill.core.hashing import canonical
from distill.core.redaction import learn, strike
from distill.engine.providers import ProviderError, Reply, one_line
from distill.engine.providers.rate_limit_headers import report, retry_after_seconds
from distill.errors import RecipeError
from distill.types import Endpoint, Finish, Request, Sampling, Usage

if TYPE_CHECKING:
    import aiohttp


LARGEST_BODY_BYTES = 32 * 2**20
"""A longer response is refused: no answer of a model is this long."""
CONNECT_SECONDS = 15.0
LARGEST_FILE_BYTES = 4 * 2**30
"""Of a batch's output: twenty times the largest input."""
FILE_SECONDS = 3600.0
"""The longest download of such a file."""
DEEPEST_BODY = 100
"""Nested lists and objects of a response; more could be written to the journal and not be read again."""

_FINISH: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "filtered",
    "tool_calls": "tool",
    "function_call": "tool",
}
_TRANSIENT = {408, 409, 425, 429}
_BUSY = {429, 503}
_SAMPLING = tuple(field.name for field in fields(Sampling) if field.name != "extra_body")
_FILTERED = ("content_filter", "content_policy", "content management policy", "moderation", "flagged")


class OpenAIProvider:
    """One model behind one address.

    `endpoint` is the identity that enters the keys; without one it is the model, the normalised address and, where the
    endpoint has one, the `revision`. `api_key` and the values of `headers` are secrets: they appear in no error, no
    `repr` and no answer. So are variables that `base_url` or an extra body names (`$NAME`), which are filled in as a
    request leaves. `extra_body` joins every request's body (`None` takes a field out) and, as it can change answers,
    the identity. `timeout_seconds` bounds one send. The environment's proxies are used, but never for a loopback
    address. Raises `RecipeError` for what cannot be sent.
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
        self.headers = _headers(api_key, headers or {})
        """What every request carries; secret."""
        self.account = sha256(canonical([self.shown_url, model, self.headers]).encode()).hexdigest()
        """Equal for what shares the endpoint's limits: address, model and key; never written anywhere."""
        for secret in (api_key or "", *(headers or {}).values(), *_secrets_of(base_url)):
            learn(secret)
        self._timeout_seconds = timeout_seconds
        self._largest_body_bytes = largest_body_bytes
        self._addresses: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown_url!r}, {self.model!r})"

    async def send(self, request: Request) -> Reply:
        """Ask once. Raises `ProviderError`."""
        path, body = self.body(request)
        status, headers, said = await self.exchange("POST", path, json.dumps(body).encode("ascii"))
        if status != 200:
            raise self.refusal(status, headers, said)
        return cut_at_stop(self.read(said, headers), request.sampling.stop)

    async def exchange(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        *,
        kind: str = "application/json",
        largest_body_bytes: int | None = None,
        timeout_seconds: float | None = None,
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of one response; `kind` is the media type of `data`, and `path` may hold a query.

        Raises `ProviderError` where none came, or one that is too long.
        """
        import aiohttp

        options: dict[str, Any] = {"data": data, "headers": {"Content-Type": kind}} if data is not None else {}
        if timeout_seconds is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        largest = largest_body_bytes or self._largest_body_bytes
        try:
            async with self._here().request(method, self._address(path), allow_redirects=False, **options) as response:
                return response.status, response.headers, await _read(response, largest)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._broken(error) from error

    async def lines(self, path: str) -> AsyncGenerator[bytes, None]:
        r"""The lines of a file that are not empty, as they come; only b"\n" ends one, for U+2028 is part of a text.

        Raises `ProviderError`, also for a status other than 200, for a line longer than a body may be, and for a file
        longer than `LARGEST_FILE_BYTES`.
        """
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=FILE_SECONDS, sock_connect=CONNECT_SECONDS)
        rest, total = bytearray(), 0
        try:
            async with self._here().get(self._address(path), allow_redirects=False, timeout=timeout) as response:
                if response.status != 200:
                    said = await _read(response, self._largest_body_bytes)
                    raise self.refusal(response.status, response.headers, said)
                async for chunk in response.content.iter_any():
                    total += len(chunk)
                    rest += chunk
                    if len(rest) > self._largest_body_bytes + len(chunk) or total > LARGEST_FILE_BYTES:
                        raise ProviderError("too_large", f"{total} bytes of a file are read, and it goes on")
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
        """The address of a method, its variables filled in."""
        if path not in self._addresses:
            self._addresses[path] = _join(credentials.filled_url(self.base_url), path)
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
            body["logprobs"] = body.pop("top_logprobs", 1)  # /completions takes a number in place of a yes
        body |= credentials.filled(sampling.extra_body)
        body |= credentials.filled(self._extra_body)
        if None in body.values():
            body = {name: value for name, value in body.items() if value is not None}
        return "/chat/completions" if request.prompt is None else "/completions", body

    def _here(self) -> aiohttp.ClientSession:
        """The session of the running loop; a loop that has ended takes its session with it."""
        import aiohttp

        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the engine's slots are the limit
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds, sock_connect=CONNECT_SECONDS),
                headers=self.headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self.base_url),
            )
        return self._session

    def read(self, said: str, headers: Mapping[str, str]) -> Reply:
        """The reply in the body of an HTTP 200. Raises `ProviderError`."""
        body = _json_object(said)
        choices = body.get("choices")
        if not choices and isinstance(body.get("error"), dict):
            code = body["error"].get("code")
            raise self.refusal(code if isinstance(code, int) and 400 <= code < 600 else 502, headers, said)
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ProviderError("malformed", f"no choices in the response: {_shown(said)}", transient=True)
        text = _text(choices[0])
        return Reply(
            text=text,
            finish=_FINISH.get(str(choices[0].get("finish_reason")), "unknown"),
            usage=_usage(body.get("usage"), text),
            raw=body,
            raw_json=said,
            report=report(headers),
        )

    def refusal(self, status: int, headers: Mapping[str, str], body: str) -> ProviderError:
        """What an HTTP status other than 200 means: ask again, never again, or stop.

        `headers` looks names up without regard to case.
        """
        said, code = _said(body)
        said = f"HTTP {status}: {one_line(said, 160)}"
        reason = f"http_{status}"
        if status in {400, 403} and any(word in f"{code} {said}".lower() for word in _FILTERED):
            return ProviderError("filtered", said)
        if advice := self._advice(status, headers, f"{code} {said}".lower()):
            return ProviderError(reason, f"{self.shown_url} answers {said}; {advice}", fatal=True)
        return ProviderError(
            reason,
            said,
            transient=status in _TRANSIENT or status >= 500,
            retry_after=retry_after_seconds(headers),
            busy=status in _BUSY,
            report=report(headers),
        )

    def _advice(self, status: int, headers: Mapping[str, str], said: str) -> str | None:
        """What to do where no request can succeed; `None` where another might."""
        if status in {401, 403}:
            return "check the key in the environment variable that api_key_env names"
        if status == 402 or "insufficient_quota" in said or "billing_hard_limit" in said:
            return "the account has no credit left; add some and run again"
        if "model_not_found" in said or (status == 404 and "model" in said):
            return f'check the name of the model, "{self.model}"'
        if status in {404, 405}:
            return "check base_url, which usually ends in /v1"
        if 300 <= status < 400:
            return f"it points to {one_line(_location(headers), 100)}; put that address into base_url"
        return None

    def _broken(self, error: Exception) -> ProviderError:
        """What an exception on the way means; all of them may pass but a certificate that is not trusted."""
        import aiohttp

        said = one_line(str(error) or type(error).__name__, 160)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return ProviderError("certificate", f"{self.shown_url} is not trusted: {said}", fatal=True)
        if isinstance(error, aiohttp.InvalidURL):
            return ProviderError("address", f"{self.shown_url} is no address: {said}; check base_url", fatal=True)
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            detail = f"cannot connect to {self.shown_url}: {said}; check base_url and that its server is running"
            return ProviderError("refused", detail, transient=True)
        if isinstance(error, TimeoutError):
            return ProviderError("timeout", f"no answer within {self._timeout_seconds:g} s", transient=True)
        if isinstance(error, aiohttp.ClientPayloadError):
            return ProviderError("malformed", f"the response was cut off: {said}", transient=True)
        return ProviderError("connection", f"the connection broke: {said}", transient=True)

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
    """Status and text of one exchange, from plain code. Raises `ProviderError` where there is no response."""

    async def once() -> tuple[int, str]:
        provider = OpenAIProvider(base_url, "", api_key=api_key, timeout_seconds=timeout_seconds)
        try:
            data = None if body is None else json.dumps(body).encode("ascii")
            status, _, said = await provider.exchange(method, path, data)
            return status, said
        finally:
            await provider.close()

    return event_loop.run(once())


def cut_at_stop(reply: Reply, stop: Sequence[str]) -> Reply:
    """The reply up to the first of our stop strings, for endpoints that ignore them; that is how it stopped."""
    places = [place for text in stop if text and (place := reply.text.find(text)) >= 0]
    return replace(reply, text=reply.text[: min(places)], finish="stop") if places else reply


def normalise_url(url: str) -> str:
    """The address as an identity: without userinfo, query, fragment and trailing slash; nothing is added.

    Raises `RecipeError` for what is no http(s) address.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        shown = one_line(url.rpartition("@")[2].partition("?")[0], 100)
        raise RecipeError(f'base_url "{shown}" is no address; expected one such as http://127.0.0.1:8000/v1')
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path.rstrip("/"), "", ""))


def _join(base_url: str, path: str) -> str:
    """The address of a method; a query of the base, as some gateways want one, stays."""
    parts = urlsplit(base_url.strip())
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, parts.query, ""))


def _proxy(base_url: str) -> str | None:
    """The environment's proxy for an address, looked up once: aiohttp's `trust_env` asks a thread at every request."""
    parts = urlsplit(base_url.strip())
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    found = getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _headers(api_key: str | None, extra: Mapping[str, str]) -> dict[str, str]:
    found = {"Accept": "application/json"}
    if api_key:
        found["Authorization"] = f"Bearer {api_key.strip()}"
    found |= {name: value.strip() for name, value in extra.items()}
    for name, value in found.items():
        if not (name.isascii() and value.isascii() and (name + value).replace(" ", "").isprintable()):
            raise RecipeError(f"the value for the HTTP header {name!a} has characters that no header can carry")
    return found


def _secrets_of(base_url: str) -> list[str]:
    """What an address holds of secrets: its password, and values of its query under names of secrets."""
    literal = [value for _, value in credentials.literals(base_url.strip(), None)]
    return [unquote(urlsplit(base_url.strip()).password or ""), *literal]


def _checked_extra(extra_body: Mapping[str, Any]) -> dict[str, Any]:
    if extra_body.get("stream"):
        raise RecipeError("extra_body asks for a stream; take stream out, answers are read whole")
    if extra_body.get("n") not in (None, 1):
        raise RecipeError("extra_body asks for several answers a request, of which one would be kept; take n out")
    return dict(extra_body)


def _with_extra(endpoint: Endpoint, extra_body: Mapping[str, Any]) -> Endpoint:
    """The endpoint with its extra body in its identity."""
    if not extra_body:
        return endpoint
    both = canonical({"fingerprint": endpoint.fingerprint, "extra_body": extra_body})
    return replace(endpoint, fingerprint=sha256(both.encode("ascii")).hexdigest())


async def _read(response: aiohttp.ClientResponse, largest: int) -> str:
    """The body as text, without known secrets."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > largest:
            response.close()
            raise ProviderError("too_large", f"the response is longer than {largest} bytes")
    return strike(data.decode(_encoding(bytes(data[:4]), response.charset), "replace"))


def _encoding(first: bytes, charset: str | None) -> str:
    """UTF-8, or one of its wider kin, by the first bytes or by what the header says (RFC 4627, section 3)."""
    found = json.detect_encoding(first)
    if found == "utf-8" and charset is not None and charset.lower().startswith(("utf-16", "utf-32")):
        try:
            return codecs.lookup(charset).name
        except LookupError:
            return found
    return found


def _json_object(said: str) -> dict[str, Any]:
    try:
        body = json.loads("" if _is_deep(said) else said)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ProviderError("malformed", f"the response is no JSON object: {_shown(said)}", transient=True)
    return body


def _is_deep(said: str) -> bool:
    """Whether lists and objects may be nested deeper than `DEEPEST_BODY`; brackets in strings count as well."""
    if said.count("[") + said.count("{") <= DEEPEST_BODY:
        return False
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", said)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > DEEPEST_BODY


def _text(choice: Mapping[str, Any]) -> str:
    """The answer's text; a refusal's own field, or the text parts of a list, where there is no plain content."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return str(choice.get("text") or "")
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):
        return strike("".join(str(part.get("text") or "") for part in content if isinstance(part, dict)))
    return str(content)


def _usage(said: Any, text: str) -> Usage | None:
    """The counts as reported; None for what cannot be one. The engine holds them against what was asked."""
    if not isinstance(said, dict):
        return None
    prompt: Any = said.get("prompt_tokens")
    completion: Any = said.get("completion_tokens", 0)
    if not (_is_count(prompt, 1) and _is_count(completion, 1 if text else 0)):
        return None
    return Usage(int(prompt), int(completion))


def _is_count(said: Any, least: int) -> bool:
    return isinstance(said, (int, float)) and not isinstance(said, bool) and said >= least and said == said // 1


def _said(body: str) -> tuple[str, str]:
    """An error body's message and its code: OpenAI's shape, FastAPI's `detail`, or any text without its tags."""
    try:
        found = json.loads("" if _is_deep(body) else body)
    except ValueError:
        return _shown(body), ""
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or json.dumps(error)
    return str(message), f"{error.get('code')} {error.get('type')}"


def _shown(body: str) -> str:
    return one_line(re.sub(r"<[^>]*>", " ", body[:4000]), 160) or "nothing"


def _location(headers: Mapping[str, str]) -> str:
    return next((value for name, value in headers.items() if name.lower() == "location"), "nowhere")
