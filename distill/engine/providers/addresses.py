"""Endpoint URLs: normalisation, paths, proxies and headers."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from distill.core import credentials
from distill.engine.providers import one_line
from distill.errors import RecipeError


def normalise_url(url: str) -> str:
    """The address as an identity: without userinfo, query, fragment and trailing slash; nothing is added.

    Raises `RecipeError` for anything but an http(s) address.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        start = one_line(url.rpartition("@")[2].partition("?")[0], 100)
        raise RecipeError(f'base_url "{start}" is no address; expected one such as http://127.0.0.1:8000/v1')
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path.rstrip("/"), "", ""))


def join(base_url: str, path: str) -> str:
    """The address of a method; the base's query, which some gateways need, stays."""
    parts = urlsplit(base_url.strip())
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, parts.query, ""))


def proxy_for(base_url: str) -> str | None:
    """The environment's proxy for an address, looked up once: aiohttp's `trust_env` asks a thread at every request."""
    parts = urlsplit(base_url.strip())
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def request_headers(api_key: str | None, extra: Mapping[str, str]) -> dict[str, str]:
    """The headers of every request. Raises `RecipeError` for a value that no header can carry."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key.strip()}"
    headers |= {name: value.strip() for name, value in extra.items()}
    for name, value in headers.items():
        if not (name.isascii() and value.isascii() and (name + value).replace(" ", "").isprintable()):
            raise RecipeError(f"the value for the HTTP header {name!a} has characters that no header can carry")
    return headers


def secrets_in(base_url: str) -> list[str]:
    """The secrets in an address: its password, and values of its query under names of secrets."""
    literal = [value for _, value in credentials.literals(base_url.strip(), None)]
    return [unquote(urlsplit(base_url.strip()).password or ""), *literal]
