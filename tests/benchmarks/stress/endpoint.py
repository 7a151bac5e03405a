"""An endpoint that misbehaves in every way it can, and keeps a ledger of what it sold.

What it answers depends on the question alone, so that an undisturbed run gets the same: every sixth answer echoes a
secret in some spelling, and every twelfth question is refused for good. What a single request meets besides is dealt
from a shuffled deck, each way of misbehaving once before any comes again.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

from aiohttp import web

from distill.engine.mock_server import EMPTY, FAULTS, HANG, HTML, RESET, TRUNCATED, Fault, MockServer, drip, status
from distill.engine.mock_server.faults import question
from distill.engine.mock_server.stand_in import answer
from tests.support.echo_server import SPELLINGS

USD_PER_TOKEN = 0.001
LATENCY_SECONDS = (0.0, 0.12)
"""Between these at random, so that answers do not arrive in the order of their questions."""
TIMEOUT_SECONDS = 1.5
"""Of one send; an answer that takes nearly as long may have come too late."""
NOISE_SHARE = 0.2
"""Share of the requests that meet something from the deck."""
ECHOES, REFUSALS = 6, 12
"""One question in so many has an answer that echoes a secret, and is refused for good."""
MARK = "\N{PILCROW SIGN}"
"""Stands for the secret until the response is written, as its spelling is not for `json.dumps` to choose."""
ODD_WAITS = (
    *("0", "-1", "nan", "soon", "", "0.2", "1e-3", "٣", "0x10", "-" * 50),
    *("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Feb 2026 25:61:61 GMT"),
)
ODD_RESETS = ("0", "-5", "nan", "200ms", "0.3", "1s1s1s", "soon", "1e400", "0d", "1970-01-01T00:00:00Z", "ms", "٣s")
LIES: tuple[Any, ...] = (
    *(None, [], "many", {}, {"prompt_tokens": -5, "completion_tokens": 3}, {"prompt_tokens": "9"}),
    *({"prompt_tokens": 10**30, "completion_tokens": 1}, {"prompt_tokens": 1e400, "completion_tokens": 2**63}),
    *({"prompt_tokens": True, "completion_tokens": False}, {"prompt_tokens": 9, "completion_tokens": float("nan")}),
    *({"prompt_tokens": 3.5, "completion_tokens": []}, {"prompt_tokens": 0, "completion_tokens": 0}),
)
"""Usage that cannot be right; the worst case has to count in its place."""


@dataclass(frozen=True, slots=True)
class Noise:
    """One way to misbehave: a fault in place of an answer, or what is odd about an answer that can be read."""

    fault: Fault | None = None
    is_charged: bool = False
    """Whether an answer was generated although a fault takes its place."""
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: Any = ...
    encoding: str = "utf-8"


@dataclass(slots=True)
class Sale:
    """One request as the endpoint saw it."""

    question: str
    """The whole body, as JSON with sorted keys."""
    started: float
    """By `time.monotonic`, as `ended`."""
    ended: float | None = None
    usd: float = 0.0
    """What the endpoint charges for it, whether or not the answer arrives."""
    noise: Noise = Noise()
    is_answer: bool = False
    """Whether what was sent is an answer that the client can read."""


def noises(chance: Random, secret: str) -> dict[str, Noise]:
    """Every way to misbehave once, by name, with what may vary drawn anew; `secret` is spelled at random."""
    spelled = spelling(chance, secret)
    json_type = {"Content-Type": "application/json"}
    body = f'{{"error": {{"message": "key {spelled} met a fault", "code": CODE}}}}'
    quota = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": chance.choice(ODD_RESETS)}
    return {
        "reset": Noise(RESET, is_charged=True),
        "cut connection": Noise(TRUNCATED, is_charged=True),
        "cut JSON": Noise(Fault("status", 200, json_type, f'{{"choices": [{{"text": "{spelled}'), is_charged=True),
        "billed error": Noise(
            status(chance.choice((500, 502, 504)), body=body.replace("CODE", "500")), is_charged=True
        ),
        "error inside 200": Noise(status(200, body=body.replace("CODE", "503")), is_charged=True),
        "secret in a header": Noise(
            status(503, {"x-request-id": secret, "retry-after": secret}, body.replace("CODE", '"x"'))
        ),
        "page": Noise(HTML),
        "no choices": Noise(EMPTY),
        "no answer": Noise(HANG, is_charged=True),
        "other fault": Noise(chance.choice(FAULTS[:6])),
        "busy": Noise(status(429)),
        "busy, odd wait": Noise(status(429, {"Retry-After": chance.choice(ODD_WAITS)})),
        "busy, odd quota": Noise(status(429, quota)),
        "odd quota": Noise(headers=quota),
        "odd usage": Noise(usage=chance.choice(LIES)),
        "slow bytes": Noise(drip(chance.uniform(0.1, 0.8))),
        "wide encoding": Noise(encoding=chance.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32"))),
        "secret in headers": Noise(headers={"x-request-id": secret, "x-ratelimit-reset-tokens": secret}),
    }


def fatal(elsewhere: str, secret: str) -> dict[str, Noise]:
    """What no run goes on after, by name: it has to end soon, with its reason."""
    location = {"Location": f"{elsewhere}/chat/completions?key={secret}"}
    quota = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "999999999"}
    return {
        "redirect": Noise(status(307, location)),
        "wait of years": Noise(status(429, {"Retry-After": "999999999"})),
        "quota in years": Noise(headers=quota),
        "bad key": Noise(status(401, body={"error": {"message": f"bad key {secret}", "type": "x"}})),
    }


def spelling(chance: Random, secret: str) -> str:
    """The secret as it may stand inside a JSON string."""
    return SPELLINGS[chance.choice(sorted(SPELLINGS))](secret)


_sale: ContextVar[Sale] = ContextVar("sale")


class Endpoint(MockServer):
    """The mock server with noise and a ledger."""

    def __init__(self, secrets: tuple[str, ...], seed: int) -> None:
        super().__init__(latency_seconds=self._latency, fault=self._dealt, keep=False)
        self._secrets = secrets
        self._chance = Random(f"{seed}:endpoint")
        self._deck: Iterator[tuple[str, Noise]] = iter(())
        self.noise_share = 0.0
        self.next: Noise | None = None
        """What the next request meets, once."""
        self.ledger: list[Sale] = []
        self.dealt: Counter[str] = Counter()
        """How often each way of misbehaving was met."""

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        sale = Sale(json.dumps(await request.json(), sort_keys=True), time.monotonic())
        self.ledger.append(sale)
        _sale.set(sale)
        try:
            return await super()._respond(request)
        finally:
            sale.ended = time.monotonic()
            sale.is_answer &= sale.ended - sale.started < 0.8 * TIMEOUT_SECONDS

    def _latency(self, number: int) -> float:
        return self._chance.uniform(*LATENCY_SECONDS)

    def _dealt(self, number: int, body: dict[str, Any]) -> Fault | None:
        noise, sale, of_question = self._noise(), _sale.get(), Random(question(body))
        is_answer = noise.fault is None or noise.fault.kind == "drip"
        if is_answer and of_question.randrange(REFUSALS) == 0:
            secret = spelling(of_question, of_question.choice(self._secrets))
            return status(400, body=f'{{"error": {{"message": "not with {secret}, it is too long"}}}}')
        sale.noise, sale.is_answer = noise, is_answer
        if is_answer or noise.is_charged:
            sale.usd = sum(_usage(body, answer(body)).values()) * USD_PER_TOKEN
        return noise.fault

    def _noise(self) -> Noise:
        if self.next is not None:
            noise, self.next = self.next, None
            return noise
        if self._chance.random() >= self.noise_share:
            return Noise()
        if (card := next(self._deck, None)) is None:
            cards = list(noises(self._chance, self._chance.choice(self._secrets)).items())
            self._chance.shuffle(cards)
            self._deck = iter(cards)
            card = next(self._deck)
        self.dealt[card[0]] += 1
        return card[1]

    def _reply(self, body: dict[str, Any]) -> web.Response:
        noise, of_question = _sale.get().noise, Random(f"answer {question(body)}")
        text = answer(body)
        if of_question.randrange(ECHOES) == 0:
            text += f" The key is {MARK}."
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        usage = _usage(body, text) if noise.usage is ... else noise.usage
        document = json.dumps({"id": "x", "choices": [choice], "usage": usage}, ensure_ascii=False)
        secret = spelling(of_question, of_question.choice(self._secrets))
        data = document.replace(MARK, secret).encode(noise.encoding)
        return web.Response(body=data, headers={"Content-Type": "application/json", **noise.headers})


def _usage(body: Mapping[str, Any], text: str) -> dict[str, int]:
    most = body.get("max_tokens") or len(text)
    return {"prompt_tokens": len(question(body).split()), "completion_tokens": min(len(text.split()), most)}
