"""The key of a journal: every field that determines an answer, and the same in every version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest

from distill.core.hashing import canonical
from distill.engine.journal.keys import key
from distill.types import Endpoint, Request, Sampling
from tests.support.engine.journal_rows import CHAT, HERE, RAW


def mutations(value: Any) -> Iterator[Any]:
    """Values that differ from `value` in one place, found by introspection; at least one for every place."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for other in mutations(getattr(value, field.name)):
                yield replace(value, **{field.name: other})
    elif isinstance(value, str):
        yield value + "x"
    elif isinstance(value, (int, float)):
        yield value + 1
    elif isinstance(value, tuple):
        yield (*value, value[0] if value else "x")
        for index, item in enumerate(value):
            for other in mutations(item):
                yield (*value[:index], other, *value[index + 1 :])
    elif isinstance(value, Mapping):
        yield {**value, "x": 1}
        for name, item in value.items():
            for other in mutations(item):
                yield {**value, name: other}
    else:
        assert value is None
        yield "x"
        yield 1
        yield 0.5


@pytest.mark.parametrize("request_", [CHAT, RAW])
@pytest.mark.parametrize("endpoint", [HERE, Endpoint(model="m", fingerprint="f", revision="r")])
def test_every_field_of_request_and_endpoint_changes_the_key(request_: Request, endpoint: Endpoint) -> None:
    pairs = [(other, endpoint) for other in mutations(request_)] + [(request_, other) for other in mutations(endpoint)]
    keys = {key(*pair) for pair in pairs}
    places = sum(len(fields(kind)) for kind in (Request, Sampling, Endpoint)) - 1  # sampling is counted by its fields
    assert len(pairs) >= places
    assert len(keys | {key(request_, endpoint)}) == len(pairs) + 1


def test_a_key_never_changes_between_versions() -> None:
    assert canonical(CHAT) == (
        '{"messages":[{"content":"be brief","role":"system"},{"content":"hi","role":"user"}],"role":"teacher",'
        '"sampling":{"stop":["\\n"],"temperature":0.7}}'
    )
    assert key(CHAT, HERE) == "a03cf6e3ced141878c033812af5a9a95e7f4730d48031e90742842a91efa38b8"


def test_a_later_field_at_its_default_finds_earlier_answers() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Later(Request):
        tools: tuple[str, ...] = ()

    later = Later(role=RAW.role, prompt=RAW.prompt, sampling=RAW.sampling)
    assert key(later, HERE) == key(RAW, HERE)
    assert key(replace(later, tools=("search",)), HERE) != key(RAW, HERE)


def test_a_whole_number_is_the_same_key_however_it_is_written() -> None:
    keys = {key(replace(RAW, sampling=Sampling(temperature=t)), HERE) for t in (1, 1.0, 1e0)}
    assert len(keys) == 1
    assert key(replace(RAW, sampling=Sampling(temperature=0.0)), HERE) != key(replace(RAW, sampling=Sampling()), HERE)


def test_what_has_no_canonical_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
    with pytest.raises(TypeError, match="set has no canonical JSON"):
        canonical({1, 2})
