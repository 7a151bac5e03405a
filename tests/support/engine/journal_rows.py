"""Requests and answers to keep in a journal."""

from __future__ import annotations

from typing import Any

from distill.engine.journal.keys import key
from distill.engine.journal.store import Journal
from distill.types import Completion, Endpoint, Message, Request, Sampling, Usage

HERE = Endpoint(model="m", url="http://h/v1")


CHAT = Request(
    role="teacher",
    messages=(Message("system", "be brief"), Message("user", "hi")),
    sampling=Sampling(temperature=0.7, stop=("\n",)),
)


RAW = Request(role="teacher", prompt="once", sampling=Sampling(max_tokens=8))


def answer(of: str, text: str = "hello", **options: Any) -> Completion:
    return Completion(key=of, text=text, finish="stop", usage=Usage(3, 2), raw={"text": text}, **options)


def keep(journal: Journal, request: Request, text: str = "hello", stage: str = "") -> str:
    of = key(request, HERE)
    journal.keep(answer(of, text), request, HERE, stage=stage).result(5)
    return of


def numbered(number: int) -> Request:
    return Request(role="teacher", prompt=f"question {number}")
