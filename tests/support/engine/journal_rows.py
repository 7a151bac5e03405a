"""Requests and answers to keep in a journal."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from distill.core.hashing import canonical
from distill.engine.journal.keys import key
from distill.engine.journal.records import answered, failed
from distill.engine.journal.store import Journal, to_request
from distill.types import Completion, Endpoint, Failure, Message, Request, Sampling, Usage

HERE = Endpoint(model="m", url="http://h/v1")


CHAT = Request(
    role="teacher",
    messages=(Message("system", "be brief"), Message("user", "hi")),
    sampling=Sampling(temperature=0.7, stop=("\n",)),
)


RAW = Request(role="teacher", prompt="once", sampling=Sampling(max_tokens=8))


def answer(of: str, text: str = "hello", **options: Any) -> Completion:
    return Completion(key=of, text=text, finish="stop", usage=Usage(3, 2), raw={"text": text}, **options)


def write_answer(
    journal: Journal, completion: Completion, request: Request, endpoint: Endpoint = HERE, stage: str = ""
) -> Future[int]:
    return journal.write(answered(completion, canonical(request), request.kind, endpoint, stage=stage))


def write_failure(journal: Journal, failure: Failure, request: Request) -> Future[int]:
    return journal.write(failed(failure, canonical(request), HERE))


def keep(journal: Journal, request: Request, text: str = "hello", stage: str = "") -> str:
    of = key(request, HERE)
    write_answer(journal, answer(of, text), request, stage=stage).result(5)
    return of


@dataclass(frozen=True)
class Entry:
    """An answer together with its request."""

    completion: Completion
    request: Request
    endpoint: Endpoint
    stage: str
    created: str


def entries_of(journal: Journal) -> list[Entry]:
    """Every answer of a journal, in the order of buying."""
    found = []
    with closing(sqlite3.connect(journal.path)) as connection:
        rows = connection.execute("SELECT key, request, endpoint, stage, created FROM answers ORDER BY rowid")
        for of, request, endpoint, stage, created in rows:
            completion = journal.get(of)
            assert isinstance(completion, Completion)
            question = to_request(json.loads(request)), Endpoint(**json.loads(endpoint))
            found.append(Entry(completion, *question, stage, created))
    return found


def numbered(number: int) -> Request:
    return Request(role="teacher", prompt=f"question {number}")
