"""An OpenAI-compatible server on loopback that fails on demand, for tests of clients.

    with MockServer(latency_seconds=0.05, fault=first(3, status(429, {"Retry-After": "1"}))) as server:
        ... server.url, server.count, server.bodies

`python -m distill.engine.mock_server --latency 0.05` runs one here: it prints its address first, and its counters
as one line of JSON when it is told to end. `GET /stats` gives the counters while it runs.
"""

from __future__ import annotations

from distill.engine.mock_server.faults import (
    BAD_REQUEST,
    EMPTY,
    FAULTS,
    HANG,
    HTML,
    MOST_429,
    NO_MODEL,
    RESET,
    SLOW_DRIP,
    TRUNCATED,
    UNAUTHORISED,
    Fault,
    Script,
    asking,
    drip,
    echo,
    faults,
    first,
    never,
    question,
    some,
    status,
)
from distill.engine.mock_server.rate_limits import RateLimits, header_duration
from distill.engine.mock_server.server import MockServer

__all__ = [
    "BAD_REQUEST",
    "EMPTY",
    "FAULTS",
    "HANG",
    "HTML",
    "MOST_429",
    "NO_MODEL",
    "RESET",
    "SLOW_DRIP",
    "TRUNCATED",
    "UNAUTHORISED",
    "Fault",
    "MockServer",
    "RateLimits",
    "Script",
    "asking",
    "drip",
    "echo",
    "faults",
    "first",
    "header_duration",
    "never",
    "question",
    "some",
    "status",
]
