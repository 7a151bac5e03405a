"""Retry policy: tenacity's stop and wait rules, for retries that wait without holding a concurrency slot."""

from __future__ import annotations

import random
from dataclasses import dataclass

import tenacity

from distill.engine.providers import ProviderError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
"""The first wait between two sends of a request, and the longest; ten attempts bridge about two minutes."""
HEALTHY_WAIT_SECONDS = 1.0
"""The longest wait while the endpoint answers other requests: it is not overloaded then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often one request is sent, and how long to wait in between.

    Waits grow as `first_wait_seconds` · 2ⁿ up to `longest_wait_seconds`, half of each drawn at random, so that requests
    that failed together do not return together.
    """

    attempts: int = 10
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    longest_wait_seconds: float = LONGEST_WAIT_SECONDS

    def is_over(self, attempt: int) -> bool:
        """Whether the `attempt`-th send (1, 2, …) was the last."""
        return tenacity.stop_after_attempt(self.attempts)(_state(attempt))

    def wait_seconds(self, attempt: int, error: ProviderError, *, is_healthy: bool = False) -> float:
        """Seconds to wait after the `attempt`-th send: never less than the endpoint asked for.

        `is_healthy` says that the endpoint answers other requests; then the wait is short.
        """
        first, longest = self.first_wait_seconds / 2, self.longest_wait_seconds / 2
        usual = tenacity.wait_exponential(multiplier=first, max=longest)
        wait = float((usual + tenacity.wait_random_exponential(multiplier=first, max=longest))(_state(attempt)))
        if is_healthy:
            wait = min(wait, HEALTHY_WAIT_SECONDS * random.uniform(0.5, 1.0))
        if error.retry_after is None:
            return wait
        return max(wait, error.retry_after * random.uniform(1.0, 1.1))


def _state(attempt: int) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    return state
