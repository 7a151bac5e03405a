"""Contender: the shortest aiohttp loop there is, without journal, retries or checks; what the client library allows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
from contest import Measured, parser, question, tell


async def _all(url: str, requests: int, concurrency: int) -> int:
    numbers = iter(range(requests))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        workers = (_work(session, f"{url}/chat/completions", numbers) for _ in range(concurrency))
        return sum(await asyncio.gather(*workers))


async def _work(session: aiohttp.ClientSession, url: str, numbers: Iterator[int]) -> int:
    answered = 0
    for number in numbers:
        messages = [{"role": "user", "content": question(number)}]
        data = json.dumps({"model": "m", "messages": messages, "max_tokens": 64}).encode()
        async with session.post(url, data=data, headers={"Content-Type": "application/json"}) as response:
            answer = json.loads(await response.read())
        answered += bool(answer["choices"][0]["message"]["content"])
    return answered


def main() -> None:
    """Measure."""
    given = parser().parse_args()
    with Measured() as result:
        result.requests = asyncio.run(_all(given.url, given.requests, given.concurrency))
    tell(result, version=aiohttp.__version__)


if __name__ == "__main__":
    main()
