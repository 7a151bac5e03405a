"""A hard cap on spending: the worst case is reserved before a request leaves, and settled when its price is known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from distill.errors import RecipeError
from distill.journal import Entry
from distill.providers import ProviderError
from distill.types import Request, Usage

TOKENS_A_MESSAGE = 16
"""Upper bound of what a chat template adds to a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float

    def usd(self, usage: Usage) -> float:
        """What so many tokens cost."""
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6


class Budget:
    """Counts what is spent by the price of each role, and lets nothing leave that could exceed the cap.

    `spent_usd` is what earlier runs spent of the same cap. Without a cap it only counts.
    """

    def __init__(self, prices: Mapping[str, Price], *, cap_usd: float | None = None, spent_usd: float = 0.0) -> None:
        self._prices = dict(prices)
        self._earlier_usd = spent_usd
        self.cap_usd = cap_usd
        self.spent_usd = 0.0
        """By this budget's own requests."""
        self.reserved_usd = 0.0
        self.in_flight = 0

    def check(self, roles: Collection[str]) -> None:
        """Raise `RecipeError` when a role without a price would escape the cap."""
        missing = sorted(role for role in roles if role not in self._prices)
        if self.cap_usd is not None and missing:
            raise RecipeError(
                f"a budget of {self.cap_usd:g} USD needs a price, and {', '.join(missing)} has none;"
                " add price: {input: …, output: …} in USD per million tokens"
            )

    def reserve(self, request: Request) -> float | None:
        """Set the worst case aside and return it in USD, or `None` when it does not fit now."""
        worst = self.worst_usd(request)
        left = None if self.cap_usd is None else self.cap_usd - self._earlier_usd - self.spent_usd - self.reserved_usd
        if left is not None and worst > left:
            return None
        self.reserved_usd += worst
        self.in_flight += 1
        return worst

    def worst_usd(self, request: Request) -> float:
        """The most that one send can cost: a token is at least a byte of UTF-8. 0 where nothing is capped."""
        price = self._prices.get(request.role)
        if price is None or self.cap_usd is None:
            return 0.0
        if request.kind == "likelihood":
            return price.usd(Usage(most_prompt_tokens(request), 1))
        if request.sampling.max_tokens is None:
            raise RecipeError(f"a budget needs sampling.max_tokens for the {request.role}, or nothing bounds it")
        return price.usd(Usage(most_prompt_tokens(request), request.sampling.max_tokens))

    def settle(self, request: Request, reserved_usd: float, usage: Usage | None) -> None:
        """Book an answer: as reported, or the worst case where nothing was reported."""
        price = self._prices.get(request.role)
        self._release(reserved_usd)
        if price is not None:
            self.spent_usd += reserved_usd if usage is None else price.usd(usage)

    def settle_error(self, reserved_usd: float, error: BaseException) -> None:
        """Book a send without an answer: nothing where the endpoint refused it, else the worst case."""
        self._release(reserved_usd)
        if not (isinstance(error, ProviderError) and _is_free(error)):
            self.spent_usd += reserved_usd

    @property
    def usd(self) -> float | None:
        """Spent by this budget's own requests; `None` where nothing has a price."""
        return self.spent_usd if self._prices else None

    def verdict(self, request: Request) -> str:
        """One line for a request that does not fit."""
        return (
            f"the budget of {self.cap_usd:g} USD is used up: {self._earlier_usd + self.spent_usd:.4f} USD are spent and"
            f" the next request may cost up to {self.worst_usd(request):.4f}; all that was bought is kept; raise the"
            " budget or lower max_tokens, and run again to go on"
        )

    def _release(self, reserved_usd: float) -> None:
        self.reserved_usd -= reserved_usd
        self.in_flight -= 1


def spent_usd(entries: Iterable[Entry], prices: Mapping[str, Price]) -> float:
    """What a journal's answers cost by their role's price; where no usage was reported, at most.

    What was in flight when a process was killed is in no journal, and not in here.
    """
    total = 0.0
    for entry in entries:
        if (price := prices.get(entry.request.role)) is not None:
            most = Usage(most_prompt_tokens(entry.request), entry.request.sampling.max_tokens or 0)
            total += price.usd(entry.completion.usage or most)
    return total


def most_prompt_tokens(request: Request) -> int:
    """Upper bound of a request's prompt tokens."""
    texts = [message.content for message in request.messages] + [request.prompt or "", request.continuation or ""]
    return sum(len(text.encode("utf-8", "replace")) for text in texts) + TOKENS_A_MESSAGE * (len(request.messages) + 1)


def _is_free(error: ProviderError) -> bool:
    """Whether an error says that nothing was generated: no connection, or an answer of HTTP 4xx."""
    return error.reason in {"refused", "filtered"} or error.reason.startswith("http_4")
