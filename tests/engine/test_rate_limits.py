"""How fast an endpoint may be asked: paces, remainders, holds, shrinking limits and the breaker, on our own clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.backpressure import BREAKER_TRIALS, Breaker, Concurrency, SendOutcome, Ticket, outcome_of
from distill.engine.providers import ProviderError
from distill.engine.providers.rate_limit_headers import RateLimitReport, RemainingQuota
from distill.engine.rate_limits import Limiter, LimiterClosed, Pace, Rates, Remainder
from distill.errors import EndpointError


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limiter(clock: Callable[[], float] | None = None, **rates: float) -> Limiter:
    return Limiter(Rates(**rates), clock=clock) if clock else Limiter(Rates(**rates))


def ticket(number: int, *, trial: bool = False) -> Ticket:
    return Ticket(number, 1.0, trial)


# --- the pace of the recipe


@given(
    st.floats(0.5, 10_000),
    st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_no_minute_holds_more_than_its_limit(per_minute: float, gaps: list[float]) -> None:
    pace, now, sent = Pace(per_minute), 0.0, []
    for gap in gaps:
        now += gap
        now += pace.wait_seconds(1, now)
        assert pace.wait_seconds(1, now) < 1e-6
        pace.spend(1, now)
        sent.append(now)
    for start in sent:
        assert sum(start <= at < start + 60 - 1e-6 for at in sent) <= math.ceil(per_minute)


def test_a_busy_pace_uses_its_whole_limit() -> None:
    pace, now = Pace(600), 0.0
    for _ in range(6000):
        now += pace.wait_seconds(1, now)
        pace.spend(1, now)
    assert 6000 / (now / 60) == pytest.approx(600, rel=0.02)


def test_tokens_that_were_expected_and_not_used_are_given_back() -> None:
    pace = Pace(60_000, least=0)
    pace.spend(1000, 0.0)
    assert pace.wait_seconds(500, 0.0) == pytest.approx(0.5, rel=0.05)
    pace.spend(-900, 0.0)
    assert pace.wait_seconds(500, 0.0) == 0


def test_one_request_over_the_burst_waits_for_a_whole_one_and_then_leaves_a_debt() -> None:
    pace = Pace(6000, least=0)  # 100 tokens at once
    assert pace.wait_seconds(5000, 0.0) == 0
    pace.spend(5000, 0.0)
    assert pace.wait_seconds(1, 0.0) == pytest.approx(49.8, rel=0.02)


# --- what the headers say


def test_nothing_leaves_when_nothing_is_left_until_the_reset() -> None:
    left = Remainder()
    left.hear(RemainingQuota(2, 30.0, 500), ticket(1), 100.0)
    assert left.wait_seconds(1, 100.0) == 0
    left.spend(2, 100.0)
    assert left.wait_seconds(1, 110.0) == 20.0
    assert left.wait_seconds(1, 130.0) == 0
    left.spend(499, 130.0)
    assert left.wait_seconds(1, 131.0) == 0


def test_a_report_that_comes_late_is_stale() -> None:
    left = Remainder()
    left.hear(RemainingQuota(0, 30.0), ticket(5), 100.0)
    left.hear(RemainingQuota(9, 30.0), ticket(4), 101.0)
    assert left.wait_seconds(1, 101.0) == 29.0


def test_a_request_for_more_than_the_whole_limit_is_sent_when_all_of_it_is_left() -> None:
    left = Remainder()
    left.hear(RemainingQuota(1000, 30.0, 1000), ticket(1), 0.0)
    assert left.wait_seconds(4000, 0.0) == 0


# --- concurrency


def round_trip(concurrency: Concurrency, first: int, accepted: int, turned_away: int) -> int:
    """One window of answers; returns the next number."""
    count = accepted + turned_away
    for offset in range(count):
        busy = offset >= accepted
        concurrency.note(ticket(first + offset), busy=busy, latest=first + count - 1, in_use=count)
    return first + count


def test_a_round_trip_shrinks_the_limit_once_and_to_what_was_accepted() -> None:
    concurrency = Concurrency(200)
    number = round_trip(concurrency, 1, 1, 0)
    for offset in range(200):  # one window: nothing that left in it ends it, but its last
        concurrency.note(ticket(number + offset), busy=offset >= 120, latest=number + 199, in_use=200)
        if offset == 0:
            before = concurrency.limit
    assert before == 200
    concurrency.note(ticket(number + 200), busy=False, latest=number + 320, in_use=200)
    assert concurrency.limit == pytest.approx(200 * 121 / 200, abs=2)


def test_an_endpoint_of_ten_at_once_is_found_within_a_few_round_trips_and_not_left_below() -> None:
    concurrency, number = Concurrency(200), 1
    seen = []
    for _ in range(60):
        at_once = int(concurrency.limit)
        number = round_trip(concurrency, number, min(10, at_once), max(0, at_once - 10))
        seen.append(concurrency.limit)
    assert seen[8] <= 15
    assert 8 <= min(seen[10:]) <= max(seen[10:]) <= 15


def test_a_few_that_are_turned_away_change_nothing() -> None:
    concurrency, number = Concurrency(100), 1
    for _ in range(20):
        number = round_trip(concurrency, number, 90, 10)
    assert concurrency.limit == 100


def test_after_an_outage_the_old_limit_is_back_within_a_dozen_round_trips() -> None:
    concurrency, number = Concurrency(256), 1
    for _ in range(12):
        number = round_trip(concurrency, number, 0, max(1, int(concurrency.limit)))
    assert concurrency.limit == 1
    for _ in range(25):
        number = round_trip(concurrency, number, max(1, int(concurrency.limit)), 0)
    assert concurrency.limit >= 128


# --- the breaker


def test_the_breaker_opens_when_over_half_of_the_last_hundred_failed_and_closes_with_one_answer() -> None:
    breaker = Breaker()
    for number in range(50):
        breaker.note(ticket(number), SendOutcome.FAULT, 0.0)
        breaker.note(ticket(number), SendOutcome.ANSWER, 0.0)
    assert breaker.until is None
    breaker.note(ticket(100), SendOutcome.FAULT, 7.0)
    breaker.note(ticket(101), SendOutcome.FAULT, 7.0)
    assert breaker.until == 12.0
    breaker.note(ticket(102, trial=True), SendOutcome.FAULT, 12.0)
    assert breaker.until == 22.0
    breaker.note(ticket(103, trial=True), SendOutcome.ANSWER, 22.0)
    assert breaker.until is None
    breaker.note(ticket(104), SendOutcome.FAULT, 23.0)
    assert breaker.until is None


def test_turned_away_for_load_is_no_failure_of_the_endpoint() -> None:
    breaker = Breaker()
    for number in range(500):
        breaker.note(ticket(number), SendOutcome.BUSY, 0.0)
        breaker.note(ticket(number), SendOutcome.REFUSAL, 0.0)
    assert breaker.until is None


def test_an_endpoint_that_stays_down_ends_the_run_after_half_an_hour() -> None:
    breaker, now = Breaker(), 0.0
    for number in range(51):
        breaker.note(ticket(number), SendOutcome.FAULT, now)
    for _ in range(BREAKER_TRIALS - 1):
        now = breaker.until or 0.0
        breaker.note(ticket(1, trial=True), SendOutcome.FAULT, now)
    with pytest.raises(EndpointError, match=r"has failed for 3\d minutes, and 20 trials since have failed too"):
        breaker.note(ticket(1, trial=True), SendOutcome.FAULT, now)


@pytest.mark.parametrize(
    ("error", "came"),
    [
        (None, SendOutcome.ANSWER),
        (ProviderError("http_429", "", transient=True, busy=True), SendOutcome.BUSY),
        (ProviderError("http_500", "", transient=True), SendOutcome.FAULT),
        (ProviderError("timeout", "", transient=True), SendOutcome.FAULT),
        (ProviderError("http_400", ""), SendOutcome.REFUSAL),
        (asyncio.CancelledError(), SendOutcome.REFUSAL),
    ],
)
def test_what_an_error_says_of_the_endpoint(error: BaseException | None, came: SendOutcome) -> None:
    assert outcome_of(error) is came


# --- the limiter as a whole


def test_no_more_than_the_slots_are_out_and_a_ticket_given_back_lets_the_next_in() -> None:
    async def work() -> None:
        gate = limiter(concurrency=2)
        tickets = [await gate.enter(1), await gate.enter(1)]
        third = asyncio.ensure_future(gate.enter(1))
        await asyncio.sleep(0.01)
        assert not third.done()
        gate.leave(tickets[0], SendOutcome.ANSWER)
        assert (await third).number == 3
        assert gate.in_flight == 2

    asyncio.run(work())


def test_requests_asked_again_take_turns_with_first_tries() -> None:
    async def work() -> list[str]:
        gate = limiter(concurrency=1)
        out = await gate.enter(1)
        order: list[str] = []

        async def ask(name: str, again: bool) -> None:
            mine = await gate.enter(1, again=again)
            order.append(name)
            await asyncio.sleep(0)
            gate.leave(mine, SendOutcome.ANSWER)

        asked = [asyncio.ensure_future(ask(f"first{n}", False)) for n in range(3)]
        asked += [asyncio.ensure_future(ask(f"again{n}", True)) for n in range(3)]
        await asyncio.sleep(0)
        gate.leave(out, SendOutcome.ANSWER)
        await asyncio.gather(*asked)
        return order

    assert asyncio.run(work()) == ["again0", "first0", "again1", "first1", "again2", "first2"]


def test_retry_after_holds_everybody_only_when_a_quarter_of_a_window_carries_one() -> None:
    async def work() -> None:
        clock = Clock()
        gate = limiter(clock, concurrency=40)
        tickets = [await gate.enter(1) for _ in range(40)]
        for out in tickets[:9]:
            gate.leave(out, SendOutcome.BUSY, retry_after=5.0)
        assert gate.wait_seconds(1) == 0
        gate.leave(tickets[9], SendOutcome.BUSY, retry_after=5.0)
        assert gate.wait_seconds(1) > 0
        assert gate.describe() == "waiting 5 s (Retry-After)"
        clock.now += 5.1
        assert gate.wait_seconds(1) == 0
        assert gate.concurrency.limit == 40

    asyncio.run(work())


def test_the_headers_remainder_holds_everybody_and_says_so() -> None:
    async def work() -> None:
        clock = Clock()
        gate = limiter(clock, concurrency=40)
        out = await gate.enter(1)
        gate.leave(out, SendOutcome.ANSWER, report=RateLimitReport(requests=RemainingQuota(0, 12.0, 60)))
        assert gate.wait_seconds(1) > 0
        assert gate.describe() == "waiting 12 s (requests left by the headers)"
        clock.now += 12
        assert gate.wait_seconds(1) == 0

    asyncio.run(work())


def test_an_explained_429_shrinks_no_limit() -> None:
    async def work() -> float:
        gate = limiter(Clock(), concurrency=8)
        for _ in range(5):
            for out in [await gate.enter(1) for _ in range(8)]:
                gate.leave(out, SendOutcome.BUSY, report=RateLimitReport(requests=RemainingQuota(0, 0.0, 60)))
        return gate.concurrency.limit

    assert asyncio.run(work()) == 8


def test_closing_tells_whoever_waits() -> None:
    async def work() -> None:
        gate = limiter(concurrency=1)
        await gate.enter(1)
        waiting = asyncio.ensure_future(gate.enter(1))
        await asyncio.sleep(0)
        gate.close()
        with pytest.raises(LimiterClosed):
            await waiting
        with pytest.raises(LimiterClosed):
            await gate.enter(1)

    asyncio.run(work())


def test_a_waiter_that_gives_up_takes_no_slot_with_it() -> None:
    async def work() -> None:
        gate = limiter(concurrency=1)
        out = await gate.enter(1)
        gone, stays = asyncio.ensure_future(gate.enter(1)), asyncio.ensure_future(gate.enter(1))
        await asyncio.sleep(0)
        gone.cancel()
        gate.leave(out, SendOutcome.ANSWER)
        gate.leave(await stays, SendOutcome.ANSWER)
        assert gate.in_flight == 0

    asyncio.run(work())


def test_only_one_trial_leaves_while_the_breaker_is_open() -> None:
    async def work() -> None:
        gate = Limiter(Rates(concurrency=200), breaker_seconds=0.05)
        for out in [await gate.enter(1) for _ in range(60)]:
            gate.leave(out, SendOutcome.FAULT)
        waiting = [asyncio.ensure_future(gate.enter(1)) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert [one.done() for one in waiting] == [True] + [False] * 9
        gate.leave(await waiting[0], SendOutcome.ANSWER)
        await asyncio.sleep(0)
        assert all(one.done() for one in waiting)

    asyncio.run(work())
