"""Contender: our engine, provider and journal on disk, one request a flow; with options for the other benchmarks."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from contest import Measured, parser, question, tell

from distill import __version__
from distill.engine.engine import Engine
from distill.engine.journal.store import Journal
from distill.engine.policy import BoundEndpoint
from distill.engine.providers.openai import OpenAIProvider
from distill.types import Completion, Endpoint, Flow, Message, Request, Sampling

EARLY = 10_000
"""The flow at whose end memory is measured first."""


class Flows(Sequence[tuple[str, Callable[[], Flow[bool]]]]):
    """One flow a question, made when it is its turn; it returns whether it was answered."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.ended = 0
        self.rss_bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return str(number), lambda: self._flow(number)

    def _flow(self, number: int) -> Flow[bool]:
        turn = Message("user", question(number))
        answer = yield Request(role="teacher", messages=(turn,), sampling=Sampling(max_tokens=64))
        self.ended += 1
        if self.ended in {EARLY, self._count}:
            self.rss_bytes["late" if self.ended == self._count else "early"] = psutil.Process().memory_info().rss
        return isinstance(answer, Completion)


def main() -> None:
    """Measure; with `--journal` go on from what is there."""
    given = _given()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        _measure(given, given.journal or Path(scratch) / "journal.sqlite")


def _given() -> argparse.Namespace:
    options = parser()
    options.add_argument("--scratch", type=Path, help="where a journal for once goes; a folder on a disk")
    options.add_argument("--journal", type=Path, help="a journal to keep")
    options.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of one send")
    return options.parse_args()


def _measure(given: argparse.Namespace, path: Path) -> None:
    flows = Flows(given.requests)
    endpoint = Endpoint(model="m")  # without the port, which is another one after a restart
    provider = OpenAIProvider(given.url, "m", endpoint=endpoint, timeout_seconds=given.timeout)
    with Measured() as result, Journal.open(path) as journal:
        engine = Engine(journal, {"teacher": BoundEndpoint(provider)}, concurrency=given.concurrency)
        outcomes = engine.run(flows)
        result.requests = sum(outcome.value is True for outcome in outcomes)
    kept = {"asked": engine.tally.asked, "retried": engine.tally.retried, "replayed": engine.tally.replayed}
    tell(result, version=__version__, rss_bytes=flows.rss_bytes, **kept)


if __name__ == "__main__":
    main()
