"""Carries openai's SDK calls over `OpenAIProvider.exchange`, so that its bounds on connections and sizes hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from distill.engine.providers.openai import OpenAIProvider


BASE = "http://endpoint.invalid"
"""A placeholder for the client; the provider knows the real address."""
UPLOAD_SECONDS, CALL_SECONDS = 3600.0, 60.0
"""The longest upload, which may have 200 MB, and the longest other call."""


class Transport(httpx2.AsyncBaseTransport):
    """Sends what the client asks for through a provider. Raises `ProviderError`, which the client wraps."""

    def __init__(self, provider: OpenAIProvider) -> None:
        self._provider = provider

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One call. The response has the body only and the headers that say when to call again."""
        kind = request.headers.get("Content-Type", "application/json")
        status, headers, reply = await self._provider.exchange(
            request.method,
            request.url.raw_path.decode("ascii"),
            await request.aread() or None,
            kind=kind,
            timeout_seconds=UPLOAD_SECONDS if kind.startswith("multipart") else CALL_SECONDS,
        )
        passed = {name: value for name, value in headers.items() if name.lower() in _KEPT}
        return httpx2.Response(status, headers={"Content-Type": "application/json", **passed}, text=reply)


_KEPT = ("retry-after", "retry-after-ms", "location")
