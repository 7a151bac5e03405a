"""Runs the mock server in the foreground: `python -m distill.engine.mock_server`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence

from distill.engine.mock_server import MockServer, RateLimits, faults, never


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; the address goes to standard output first, the counters last."""
    options = _parser().parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _server(options) as server:
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
    return parser


def _server(options: argparse.Namespace) -> MockServer:
    return MockServer(
        latency_seconds=options.latency,
        fault=faults(options.faults, seed=options.seed) if options.faults else never,
        limits=RateLimits(requests_per_minute=options.rpm, tokens_per_minute=options.tpm),
        keep=False,
        port=options.port,
    )


if __name__ == "__main__":
    main()
