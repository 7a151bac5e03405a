"""A real OpenAI-compatible server on loopback that misbehaves on demand, for tests of everything that asks one.

    with LoopbackServer(latency_seconds=0.05, misdeed=first(3, status(429, {"Retry-After": "1"}))) as server:
        ... server.url, server.count, server.bodies

`python -m distill.loopback --latency 0.05` runs one in the foreground: it prints its address first, and its counters
as one line of JSON when it is told to end. `GET /stats` gives the counters while it runs. With `--fast` it answers as
quickly as one core can, always the same, to measure clients against.
"""

from __future__ import annotations

from distill.loopback.fast import (
    CANNED,
    FastServer,
)
from distill.loopback.limits import (
    RateLimits,
    duration,
)
from distill.loopback.misdeeds import (
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
    Misdeed,
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
from distill.loopback.server import (
    LoopbackServer,
)

__all__ = [
    "BAD_REQUEST",
    "CANNED",
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
    "FastServer",
    "LoopbackServer",
    "Misdeed",
    "RateLimits",
    "Script",
    "asking",
    "drip",
    "duration",
    "echo",
    "faults",
    "first",
    "never",
    "question",
    "some",
    "status",
]
