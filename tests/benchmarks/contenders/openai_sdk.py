"""Contender: the OpenAI SDK's asynchronous client as it comes (its pool holds 1,000 connections)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
from contest import Measured, parser, question, tell


async def _all(url: str, requests: int, concurrency: int) -> int:
    numbers = iter(range(requests))
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        return sum(await asyncio.gather(*(_work(client, numbers) for _ in range(concurrency))))


async def _work(client: openai.AsyncOpenAI, numbers: Iterator[int]) -> int:
    answered = 0
    for number in numbers:
        answer = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": question(number)}], max_tokens=64
        )
        answered += bool(answer.choices[0].message.content)
    return answered


def main() -> None:
    """Measure."""
    given = parser().parse_args()
    with Measured() as result:
        result.requests = asyncio.run(_all(given.url, given.requests, given.concurrency))
    tell(result, version=openai.__version__)


if __name__ == "__main__":
    main()
