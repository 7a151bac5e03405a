"""Access control of `distill serve`: origins, Host header and API key.

A page may post plain text to any address without asking (fetch.spec.whatwg.org, "CORS-safelisted"), and reads the
answer where it has its own name resolve to this machine (DNS rebinding). So each request must name this server in
Host, come from no foreign Origin, and post JSON, which a page cannot send without a preflight.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import TypeAlias
from urllib.parse import urlsplit

from aiohttp import web

from distill.engine.providers import one_line
from distill.errors import RecipeError

PREFLIGHT_SECONDS = 600
"""How long a browser may keep the answer to a preflight."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/%\s]+)(:[0-9]{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\[\]:@/%*?#\s]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AccessRefusal(Exception):
    """A request that cannot be answered, in the shape of OpenAI's API."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.code = code
        self.param = param

    def response(self) -> web.Response:
        """The response that says so."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else None
        return web.json_response({"error": error}, status=self.status, headers=headers)


class AccessControl:
    """The checks that every request passes, whatever its method and path, before its body is read.

    `host` is the address listened on as it was given. `origins` are those of other pages that may use the server.
    With an `api_key`, everything but /health needs it. Raises `RecipeError` for an origin or key that cannot be one.
    """

    def __init__(self, host: str, *, origins: Sequence[str] = (), api_key: str | None = None) -> None:
        self._host = _canonical(host)
        self._origins = frozenset(map(_origin, origins))
        self._key = None if api_key is None else _bearer(api_key)

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request or refuse it; errors are JSON."""
        try:
            self._check(request)
            response = _preflight(request) if _is_preflight(request) else await handler(request)
        except AccessRefusal as refusal:
            response = refusal.response()
        except web.HTTPException as error:
            response = AccessRefusal(error.status, error.text or error.reason).response()
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin", "")
        if origin.lower() in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin
        return response

    def _check(self, request: web.Request) -> None:
        if not request.raw_path.startswith("/"):
            raise AccessRefusal(400, "the request line holds no path; expected one such as /v1/models")
        self._check_host(request)
        self._check_origin(request)
        if _is_preflight(request):
            return
        if request.path != "/health":
            self._check_key(request)
        if request.method == "POST":
            _check_body(request)

    def _check_host(self, request: web.Request) -> None:
        """Raise `AccessRefusal` unless Host is a loopback name, `--host`, or the local address of the connection."""
        header = request.headers.get("Host", "")
        match = _HOST.fullmatch(header)
        name = _canonical(match[1].strip("[]")) if match else ""
        here = request.transport.get_extra_info("sockname") if request.transport is not None else None
        if not name or not (is_loopback(name) or name in (self._host, _canonical(here[0] if here else ""))):
            raise AccessRefusal(
                403,
                f'the Host header "{header}" does not name this server; expected localhost, or the address it listens'
                " on (distill serve --host)",
                code="host_not_allowed",
            )

    def _check_origin(self, request: web.Request) -> None:
        """Raise `AccessRefusal` for a request from a page of another origin, which a browser names in Origin.

        Without an Origin, as for images and links, browsers send Sec-Fetch-Site.
        """
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        if origin is None and site in ("none", "same-origin"):
            return
        ours = f"http://{request.headers.get('Host', '')}".lower()
        if origin is None or origin.lower() not in self._origins | {ours}:
            raise AccessRefusal(
                403,
                f'a page of the origin "{origin or site}" may not use this server; to let it, start the server with'
                " --allow-origin URL",
                code="origin_not_allowed",
            )

    def _check_key(self, request: web.Request) -> None:
        if self._key is None:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), self._key)
        if scheme.lower() != "bearer" or not same:
            message = "the key is missing or wrong; expected the header Authorization: Bearer KEY"
            raise AccessRefusal(401, message, code="invalid_api_key")


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _canonical(name: str) -> str:
    """One spelling of each address, without a zone; any other name in lower case."""
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return name.lower()
    return str(getattr(address, "ipv4_mapped", None) or address)


def _origin(url: str) -> str:
    """An origin as browsers send it, without a default port."""
    origin = url.strip().lower().removesuffix("/")
    if not _ORIGIN.fullmatch(origin):
        raise RecipeError(
            f'--allow-origin: "{one_line(url, 100)}" is no origin; expected one such as http://localhost:3000'
        )
    return origin.removesuffix(_DEFAULT_PORTS.get(urlsplit(origin).scheme, "/"))


def _bearer(api_key: str) -> bytes:
    key = api_key.strip()
    if not (key and key.isascii() and key.isprintable()):
        raise RecipeError("--api-key-env: the key is blank, or has characters that no HTTP header can carry")
    return key.encode("ascii")


def _is_preflight(request: web.Request) -> bool:
    """Whether a browser asks if a page of an origin, which has been checked, may send a request."""
    asks = "Origin" in request.headers and "Access-Control-Request-Method" in request.headers
    return request.method == "OPTIONS" and asks


def _preflight(request: web.Request) -> web.Response:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "Content-Type"),
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }
    return web.Response(status=204, headers=headers)


def _check_body(request: web.Request) -> None:
    if request.content_type != "application/json":
        raise AccessRefusal(415, "the body must be JSON; send the header Content-Type: application/json")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AccessRefusal(415, "a compressed body is not taken; send it plain, without the header Content-Encoding")
