"""The key of a question: a hash of everything that determines its answer, found by introspection."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, lru_cache
from hashlib import sha256
from typing import Any

from distill.types import Endpoint, Request

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Question:
    """A request to an endpoint, with its key; made once, for both are needed again and again."""

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
        return cls(request, endpoint, request_json, sha256(both.encode("ascii")).hexdigest())


def key(request: Request, endpoint: Endpoint) -> str:
    """SHA-256, in hex, of the canonical JSON of both: every field, found by introspection.

    A field at its default is left out, so that a later version that adds a field still finds the answers of an
    earlier one; a default must therefore never change.
    """
    return Question.of(request, endpoint).key


def canonical(value: Any) -> str:
    """JSON that is equal for equal values: sorted keys, ASCII, no spaces, `1.0` as `1`, defaults left out."""
    return _ENCODER.encode(_plain(value))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for name, default in _defaults(type(value)):
            if (item := getattr(value, name)) != default:
                found[name] = _plain(item)
        return found
    raise TypeError(f"a {type(value).__name__} has no canonical JSON")


@cache
def _defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    """Each field's name and default; `MISSING`, which equals no value, where there is none."""
    return tuple(
        (field.name, field.default if field.default_factory is MISSING else field.default_factory())
        for field in fields(kind)
    )


@lru_cache(maxsize=64)
def endpoint_json(endpoint: Endpoint) -> str:
    """The endpoint's canonical JSON."""
    return canonical(endpoint)
