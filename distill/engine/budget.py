"""Hard spending cap: reserves the worst case before a request is sent, and settles it when the cost is known."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from distill.core.console import money
from distill.engine.journal.records import Bill, SendCost
from distill.engine.providers import ProviderError, Reply
from distill.engine.providers.bounded_numbers import MOST_TOKENS
from distill.errors import RecipeError
from distill.types import Request, Usage

TOKENS_PER_MESSAGE = 16
"""Upper bound of the tokens that a chat template adds per message."""
TOKENS_PER_TEMPLATE = 128
"""Upper bound of a chat template's own text: gpt-oss has about 70 tokens, Llama 3.1 about 30."""
BYTES_PER_TOKEN = 16
"""A longer mean over a whole answer is no answer: English has about 4 bytes per token, other languages up to 12."""
BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Names under which `extra_body` may bound an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """USD per million tokens."""

    input: float
    output: float

    def usd(self, usage: Usage) -> float:
        """The cost of these tokens."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6


class Budget:
    """Accounts for spending by each model's price, and blocks any send that could exceed the cap.

    `prices` are by the model's name in the engine, which is the request's role where one model plays it. `spent_usd`
    was spent by earlier runs under the same cap. Without a cap it only counts.
    """

    def __init__(
        self, prices: Mapping[str, TokenPrice], *, cap_usd: float | None = None, spent_usd: float = 0.0
    ) -> None:
        self._prices = dict(prices)
        self.earlier_usd = spent_usd
        self.cap_usd = cap_usd
        self.spent_usd = 0.0
        """Spent by requests settled here."""
        self.reserved_usd = 0.0
        self.in_flight = 0

    def check(self, names: Collection[str]) -> None:
        """Raise `RecipeError` when a model without a price would escape the cap."""
        missing = sorted(name for name in names if name not in self._prices)
        if self.cap_usd is not None and missing:
            raise RecipeError(
                f"a budget of {money(self.cap_usd)} needs a price, and {', '.join(missing)} has none;"
                " add price: {input: …, output: …} in USD per million tokens"
            )

    def most(self, name: str, request: Request) -> Bill:
        """The most that one send can cost; a token has at least one byte of UTF-8.

        Raises `RecipeError` where there is a cap and nothing bounds the answer.
        """
        prompt, completion = most_prompt_tokens(request), most_completion_tokens(request)
        if completion is None and self.cap_usd is not None:
            raise RecipeError(f"a budget needs sampling.max_tokens for the {name}, or nothing bounds it")
        price = self._prices.get(name)
        return Bill(prompt, completion, None if price is None else price.usd(Usage(prompt, completion or 0)))

    def reserve(self, most: Bill) -> bool:
        """Reserve a worst case; False, with nothing reserved, where it does not fit now."""
        usd = most.usd or 0.0
        if self.cap_usd is not None and usd > self.cap_usd - self.earlier_usd - self.spent_usd - self.reserved_usd:
            return False
        self.reserved_usd += usd
        self.in_flight += 1
        return True

    def settle(self, name: str, most: Bill, usage: Usage | None) -> Bill:
        """Book an answer and return its cost: as reported, or the worst case where nothing was reported."""
        bill = most if usage is None else self.bill(name, usage)
        self._release(most)
        self.spent_usd += bill.usd or 0.0
        return bill

    def settle_error(self, most: Bill, error: BaseException) -> Bill:
        """Book a send without an answer: it is free where the endpoint refused it, else costs the worst case."""
        self._release(most)
        if isinstance(error, ProviderError) and is_free(error):
            return Bill(0, 0, None if most.usd is None else 0.0)
        self.spent_usd += most.usd or 0.0
        return most

    def bill(self, name: str, usage: Usage) -> Bill:
        """The cost of a usage."""
        price = self._prices.get(name)
        return Bill(usage.prompt_tokens, usage.completion_tokens, None if price is None else price.usd(usage))

    @property
    def usd(self) -> float | None:
        """Spent by requests settled here; `None` where nothing has a price."""
        return self.spent_usd if self._prices else None

    def verdict(self, most: Bill) -> str:
        """One line on why a request does not fit."""
        spent_usd = self.earlier_usd + self.spent_usd
        return (
            f"the budget of {money(self.cap_usd or 0.0)} is used up: {money(spent_usd)} are spent and the next request"
            f" may cost up to {money(most.usd or 0.0)}; all answers are kept; raise the budget or lower max_tokens, and"
            " run again to go on"
        )

    def _release(self, most: Bill) -> None:
        self.reserved_usd -= most.usd or 0.0
        self.in_flight -= 1


def spent_usd(costs: Iterable[SendCost], prices: Mapping[str, TokenPrice], stage: str | None = None) -> float:
    """The cost of a journal's sends, of one stage or of all, over all invocations.

    Prices are those at the time of buying, or today's for sends that had none. Sends that may have been billed and
    reported nothing, and those in flight at a kill, count with their worst case.
    """
    return sum(cost_usd(cost, prices) for cost in costs if stage in (None, cost.stage))


def cost_usd(cost: SendCost, prices: Mapping[str, TokenPrice]) -> float:
    """One entry's USD, as `spent_usd` counts it."""
    price = prices.get(cost.role)
    return cost.usd + (price.usd(cost.unpriced) if price is not None else 0.0)


def most_prompt_tokens(request: Request) -> int:
    """Upper bound of a request's prompt tokens: all bytes sent, 16 per message, and 128 for the template."""
    texts = [message.content for message in request.messages] + [request.prompt or "", request.continuation or ""]
    size = sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts)
    sampling = request.sampling
    for extra in (sampling.response_format, sampling.extra_body):
        size += len(json.dumps(dict(extra))) if extra else 0  # schemas and tools become part of the prompt
    template = TOKENS_PER_TEMPLATE if request.messages else 0
    return min(size + TOKENS_PER_MESSAGE * (len(request.messages) + 1) + template, MOST_TOKENS)


def most_completion_tokens(request: Request) -> int | None:
    """Upper bound of an answer's tokens; `None` where nothing bounds it."""
    if request.kind == "likelihood":
        return 1
    extra = request.sampling.extra_body
    bounds = [extra[name] for name in BOUNDS if isinstance(extra.get(name), int)]
    if request.sampling.max_tokens is not None and "max_tokens" not in extra:
        bounds.append(request.sampling.max_tokens)
    most = max(bounds, default=None)
    return most if most is not None and 0 < most <= MOST_TOKENS else None


def within_bounds(reply: Reply, most: Bill) -> Reply:
    """The reply within what the request allows: a longer text is cut off, an impossible usage is left out.

    The text may have `BYTES_PER_TOKEN` for each token of max_tokens, where that was sent. The prompt's tokens are
    bounded by its bytes, the answer's by max_tokens. Without a usage, the worst case counts.
    """
    if reply.text and most.completion_tokens is not None:
        reply = _cut_off(reply, most.completion_tokens * BYTES_PER_TOKEN)
    usage = reply.usage
    if usage is None:
        return reply
    prompt, completion = most.prompt_tokens or MOST_TOKENS, most.completion_tokens or MOST_TOKENS
    is_credible = 0 <= usage.prompt_tokens <= prompt and 0 <= usage.completion_tokens <= completion
    return reply if is_credible else replace(reply, usage=None)


def _cut_off(reply: Reply, most_bytes: int) -> Reply:
    data = reply.text.encode("utf-8", "replace")
    if len(data) <= most_bytes:
        return reply
    return replace(reply, text=data[:most_bytes].decode("utf-8", "ignore"), finish="length")


def is_free(error: ProviderError) -> bool:
    """Whether an error means that nothing was generated: no connection, or HTTP 4xx."""
    return error.reason in {"refused", "filtered"} or error.reason.startswith("http_4")
