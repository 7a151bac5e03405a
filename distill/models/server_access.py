"""Access control of `distill serve` and `distill ui`: origins, Host header and API key; and the port they listen on.

A web page may post plain text to any address without a preflight (fetch.spec.whatwg.org, "CORS-safelisted"), and can
read the answer if its own domain name resolves to this machine (DNS rebinding). So each request must name this server
in Host, must not come from another Origin, and must post JSON, which a page cannot send without a preflight.
"""

from __future__ import annotations

import hmac
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from aiohttp import web

from distill.engine.providers import one_line
from distill.errors import RecipeError, ServerError

PREFLIGHT_SECONDS = 600
"""How long a browser may cache the answer to a preflight."""
ALLOW_ORIGIN = "; to let it, start the server with --allow-origin URL"

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/%\s]+)(:[0-9]{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\[\]:@/%*?#\s]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AccessRefusal(Exception):
    """A request that is refused, as an error of OpenAI's API."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """The response with the error."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else None
        return web.json_response(self.body(), status=self.status, headers=headers)


class AccessControl:
    """The checks of every request, whatever its method and path, before its body is read.

    `host` is the address to listen on, as the user wrote it. `origins` are other web origins that may use the server.
    With an `api_key`, everything but /health needs it. `advice` ends the refusal of a page of another origin. Raises
    `RecipeError` for an invalid origin or key.
    """

    def __init__(
        self, host: str, *, origins: Sequence[str] = (), api_key: str | None = None, advice: str = ALLOW_ORIGIN
    ) -> None:
        self._advice = advice
        self._host = _canonical(host)
        self._origins = frozenset(map(_origin, origins))
        self._key = None if api_key is None else _bearer(api_key)

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer or refuse a request; errors are JSON."""
        try:
            self._check(request)
            return _preflight(request) if _is_preflight(request) else await handler(request)
        except AccessRefusal as refusal:
            return refusal.response()
        except web.HTTPException as error:
            return AccessRefusal(error.status, error.text or error.reason).response()

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages of allowed origins read a response; called before its headers are sent."""
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin", "")
        if origin.lower() in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin

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
        """Raise `AccessRefusal` unless Host is a loopback name, `--host`, or the connection's local address."""
        header = request.headers.get("Host", "")
        match = _HOST.fullmatch(header)
        name = _canonical(match[1].strip("[]")) if match else ""
        here = request.transport.get_extra_info("sockname") if request.transport is not None else None
        if not name or not (is_loopback(name) or name in (self._host, _canonical(here[0] if here else ""))):
            raise AccessRefusal(
                403,
                f'the Host header "{header}" does not name this server; expected localhost, or the address that it'
                " listens on",
                code="host_not_allowed",
            )

    def _check_origin(self, request: web.Request) -> None:
        """Raise `AccessRefusal` for a page of another origin, which the browser names in Origin.

        Where they send no Origin, as for images and links, browsers send Sec-Fetch-Site.
        """
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        if origin is None and site in ("none", "same-origin"):
            return
        ours = f"http://{request.headers.get('Host', '')}".lower()
        if origin is None or origin.lower() not in self._origins | {ours}:
            raise AccessRefusal(
                403,
                f'a page of the origin "{origin or site}" may not use this server{self._advice}',
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


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet; `port` 0 takes a free one. Raises `ServerError` where taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise cannot_listen(f"{host} port {port}", error) from error
    return listener


def cannot_listen(where: str, error: Exception) -> ServerError:
    """The error for an address that cannot be listened on."""
    return ServerError(f"cannot listen on {where} ({error}); choose another port with --port")


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
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
    """Whether a browser asks if a page may send a request; the page's origin has been checked."""
    return request.method == "OPTIONS" and {"Origin", "Access-Control-Request-Method"} <= request.headers.keys()


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
