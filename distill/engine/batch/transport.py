"""Carries openai's SDK calls over `OpenAIProvider.exchange`, so that its retry and limit policy applies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from distill.engine.providers.openai import OpenAIProvider


BASE = "http://endpoint.invalid"
"""A placeholder for the client; the provider knows the real address."""
CALL_SECONDS = 3600.0
"""The longest call: an upload of 200 MB."""


class Transport(httpx2.AsyncBaseTransport):
    """Sends what the client asks for through a provider. Raises `ProviderError`, which the client wraps."""

    def __init__(self, provider: OpenAIProvider) -> None:
        self._provider = provider

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One call. The response has the body only and the headers that say when to call again."""
        status, headers, reply = await self._provider.exchange(
            request.method,
            request.url.raw_path.decode("ascii"),
            await request.aread() or None,
            kind=request.headers.get("Content-Type", "application/json"),
            timeout_seconds=CALL_SECONDS,
        )
        passed = {name: value for name, value in headers.items() if name.lower() in _KEPT}
        return httpx2.Response(status, headers={"Content-Type": "application/json", **passed}, text=reply)


_KEPT = ("retry-after", "retry-after-ms", "location")
