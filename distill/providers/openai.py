"""Any OpenAI-compatible endpoint: messages to /chat/completions, a raw prompt to /completions, over aiohttp."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from distill.errors import RecipeError
from distill.keys import canonical
from distill.providers import ProviderError, Reply, one_line
from distill.providers.headers import report, retry_after_seconds
from distill.types import Endpoint, Finish, Request, Sampling, Usage

if TYPE_CHECKING:
    import aiohttp

LARGEST_BODY_BYTES = 32 * 2**20
"""A longer response is refused: no answer of a model is this long."""
CONNECT_SECONDS = 15.0
SECRET_CHARACTERS = 8
"""A shorter key (`EMPTY`, `none` …) is no secret, and could be a word of an answer."""

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
    `repr` and no answer. `extra_body` joins every request's body (`None` takes a field out) and, as it can change
    answers, the identity. `timeout_seconds` bounds one send. The environment's proxies are used, but never for a
    loopback address. Raises `RecipeError` for what cannot be sent.
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
        self._secrets = _secrets(base_url, [api_key or "", *(headers or {}).values()])
        self._timeout_seconds = timeout_seconds
        self._largest_body_bytes = largest_body_bytes
        self._addresses = {path: _join(base_url, path) for path in ("/chat/completions", "/completions")}
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown_url!r}, {self.model!r})"

    async def send(self, request: Request) -> Reply:
        """Ask once. Raises `ProviderError`."""
        import aiohttp

        path, body = self.body(request)
        data = json.dumps(body).encode("ascii")
        try:
            async with self._here().post(self._addresses[path], data=data, allow_redirects=False) as response:
                status, headers = response.status, response.headers
                data = await self._read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._broken(error) from error
        if status != 200:
            raise self.refusal(status, headers, data)
        return cut_at_stop(self.read(data, headers), request.sampling.stop)

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
        body |= sampling.extra_body
        body |= self._extra_body
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

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._largest_body_bytes:
                response.close()
                raise ProviderError("too_large", f"the response is longer than {self._largest_body_bytes} bytes")
        return self.redact(bytes(data))

    def redact(self, data: bytes) -> bytes:
        """The data without the provider's secrets."""
        for secret in self._secrets:
            data = data.replace(secret.encode(), b"***")
        return data

    def read(self, data: bytes, headers: Mapping[str, str]) -> Reply:
        """The reply in a body of HTTP 200. Raises `ProviderError`."""
        said = data.decode("utf-8", "replace")
        body = _json_object(said)
        choices = body.get("choices")
        if not choices and isinstance(body.get("error"), dict):
            code = body["error"].get("code")
            raise self.refusal(code if isinstance(code, int) and 400 <= code < 600 else 502, headers, data)
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ProviderError("malformed", f"no choices in the response: {_shown(data)}", transient=True)
        return Reply(
            text=_text(choices[0]),
            finish=_FINISH.get(str(choices[0].get("finish_reason")), "unknown"),
            usage=_usage(body.get("usage")),
            raw=body,
            raw_json=said,
            report=report(headers),
        )

    def refusal(self, status: int, headers: Mapping[str, str], data: bytes) -> ProviderError:
        """What an HTTP status other than 200 means: ask again, never again, or stop.

        `headers` looks names up without regard to case.
        """
        said, code = _said(data)
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

        said = self.redact(one_line(str(error) or type(error).__name__, 160).encode()).decode()
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
    found = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        found["Authorization"] = f"Bearer {api_key.strip()}"
    found |= {name: value.strip() for name, value in extra.items()}
    for name, value in found.items():
        if not (name.isascii() and value.isascii() and (name + value).replace(" ", "").isprintable()):
            raise RecipeError(f"the value for the HTTP header {name!a} has characters that no header can carry")
    return found


def _secrets(base_url: str, values: Sequence[str]) -> list[str]:
    """What to strike out of responses and errors; longest first, for one may contain another."""
    parts = urlsplit(base_url)
    found = {value.strip() for value in (*values, parts.password or "", parts.query)}
    found |= {json.dumps(value)[1:-1] for value in found}
    return sorted((value for value in found if len(value) >= SECRET_CHARACTERS), key=lambda value: (-len(value), value))


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


def _json_object(said: str) -> dict[str, Any]:
    try:
        body = json.loads(said)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ProviderError("malformed", f"the response is no JSON object: {_shown(said.encode())}", transient=True)
    return body


def _text(choice: Mapping[str, Any]) -> str:
    """The answer's text; a refusal's own field, or the text parts of a list, where there is no plain content."""
    message = choice.get("message")
    if not isinstance(message, dict):
        return str(choice.get("text") or "")
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content)


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, dict):
        return None
    prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens", 0)
    return Usage(prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None


def _said(data: bytes) -> tuple[str, str]:
    """An error body's message and its code: OpenAI's shape, FastAPI's `detail`, or any text without its tags."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return _shown(data), ""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or json.dumps(error)
    return str(message), f"{error.get('code')} {error.get('type')}"


def _shown(data: bytes) -> str:
    text = re.sub(r"<[^>]*>", " ", data[:4000].decode("utf-8", "replace"))
    return one_line(text, 160) or "nothing"


def _location(headers: Mapping[str, str]) -> str:
    return next((value for name, value in headers.items() if name.lower() == "location"), "nowhere")
