"""Journal keys: a hash of everything that determines an answer, collected by introspection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from distill.core.hashing import canonical, text_sha256
from distill.types import Endpoint, Request


@dataclass(frozen=True, slots=True)
class Question:
    """A request to an endpoint, with its key."""

    request: Request
    endpoint: Endpoint
    request_json: str
    key: str
    """SHA-256, in hex."""

    @classmethod
    def of(cls, request: Request, endpoint: Endpoint) -> Question:
        """Hash the canonical JSON of both."""
        request_json = canonical(request)
        both = f'{{"endpoint":{endpoint_json(endpoint)},"request":{request_json}}}'
        return cls(request, endpoint, request_json, text_sha256(both))


def key(request: Request, endpoint: Endpoint) -> str:
    """SHA-256, in hex, of the canonical JSON of both: every field, found by introspection.

    A field at its default is left out, so that a later version that adds a field still finds the answers of an
    earlier one; a default must therefore never change.
    """
    return Question.of(request, endpoint).key


@lru_cache(maxsize=64)
def endpoint_json(endpoint: Endpoint) -> str:
    """The endpoint's canonical JSON."""
    return canonical(endpoint)
