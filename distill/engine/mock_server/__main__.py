"""Runs the mock server in the foreground: `python -m distill.engine.mock_server`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence

from distill.engine.mock_server import FastServer, MockServer, RateLimits, faults, never


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; the address goes to standard output first, the counters last."""
    given = _parser().parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _server(given) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        ended.wait()
    sys.stdout.write(f"{json.dumps(server.stats())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.engine.mock_server", description="An endpoint on loopback, to test."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--faults", type=float, default=0.0, metavar="SHARE", help="of the requests that fail, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="which requests fail")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests per minute; 429 beyond")
    parser.add_argument("--tpm", type=int, metavar="N", help="tokens per minute; 429 beyond")
    parser.add_argument("--fast", action="store_true", help="one answer for all, as fast as one core can, no faults")
    return parser


def _server(given: argparse.Namespace) -> MockServer | FastServer:
    if given.fast:
        return FastServer(latency_seconds=given.latency, port=given.port)
    return MockServer(
        latency_seconds=given.latency,
        fault=faults(given.faults, seed=given.seed) if given.faults else never,
        limits=RateLimits(requests_per_minute=given.rpm, tokens_per_minute=given.tpm),
        keep=False,
        port=given.port,
    )


if __name__ == "__main__":
    main()
