"""Every cell of the retry table, the pauses, and the breaker."""
import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, Refused
from deskbook.venues import errors as e
from deskbook.venues.retry import (
    KINDS, RETRY_TABLE, Breaker, BreakerState, RetryPolicy, Timing, action_for, after_failure, backoff_s, counts, failure_of, repeats, with_retry)

T0 = 1_735_689_600_000


class Slept:
    """Time that passes only while somebody sleeps."""
    def __init__(self):
        self.s, self.naps = 0.0, []

    def monotonic(self):
        return self.s

    def clock(self):
        return T0 + round(self.s*1000)

    async def sleep(self, s):
        self.s += s
        self.naps.append(s)

    def timing(self, seed=0):
        return Timing(self.clock, self.monotonic, self.sleep, random.Random(seed))


# One or more errors for each row, made anew for each use.
ROWS = {
    "not_sent": [lambda: e.NetworkError("refused", sent=False), lambda: e.RequestTimeout("no slot", sent=False)],
    "unclear": [lambda: e.NetworkError("reset"), lambda: e.RequestTimeout("silent"), lambda: e.ProtocolError("html"), lambda: e.Transient("?")],
    "rate_limited": [lambda: e.RateLimited("429", retry_at_ms=T0 + 1000), lambda: e.RateLimited("429")],
    "clock_skew": [lambda: e.ClockSkew("skew", offset_ms=1e4)],
    "duplicate": [lambda: e.DuplicateClientId("twice")],
    "not_found": [lambda: e.OrderNotFound("gone")],
    "stopped": [lambda: e.AuthError("401"), lambda: e.PermissionDenied("403"), lambda: e.IpBanned("418"), lambda: e.Maintenance("weekend")],
    "rejected": [lambda: e.Rejected("no"), lambda: e.InsufficientFunds("margin"), lambda: e.InvalidOrder("units"), lambda: e.InvalidOrder("units", sent=False),
                 lambda: e.OrderFinal("done"), lambda: e.MarketClosed("halt"), lambda: e.ReduceOnlyRejected("flat")],
}
EXPECTED = {  # the specification, written down a second time and by hand
    "not_sent": ("retry", "retry", "retry"), "unclear": ("retry", "recheck", "reconcile"), "rate_limited": ("wait", "wait", "wait"),
    "clock_skew": ("resync", "resync", "resync"), "duplicate": ("give_up", "give_up", "adopt"), "not_found": ("give_up", "status", "give_up"),
    "stopped": ("stop", "stop", "stop"), "rejected": ("give_up", "give_up", "give_up")}
# What the transport may do by itself: send the same request again.
AGAIN = {("not_sent", "read"), ("not_sent", "cancel"), ("not_sent", "create"), ("unclear", "read"), ("rate_limited", "read"), ("rate_limited", "cancel")}
CELLS = [(row, kind, i) for row in ROWS for kind in KINDS for i in range(len(ROWS[row]))]


def test_the_table_has_exactly_these_rows_and_columns():
    assert set(RETRY_TABLE) == set(EXPECTED) and all(tuple(r) == KINDS for r in RETRY_TABLE.values())


@pytest.mark.parametrize("row, kind, i", CELLS)
def test_each_cell(row, kind, i):
    error = ROWS[row][i]()
    assert failure_of(error) == row
    assert action_for(error, kind) == EXPECTED[row][KINDS.index(kind)]


@pytest.mark.parametrize("row, kind, i", CELLS)
def test_each_cell_does_what_it_says(row, kind, i):
    calls, time = [], Slept()

    async def once_bad():
        calls.append(time.s)
        if len(calls) == 1:
            raise ROWS[row][i]()
        return "ok"

    async def run():
        return await with_retry(once_bad, kind, RetryPolicy(), time.timing())

    if (row, kind) in AGAIN:
        assert asyncio.run(run()) == "ok" and len(calls) == 2
    else:
        with pytest.raises(type(ROWS[row][i]())):
            asyncio.run(run())
        assert len(calls) == 1


def test_an_unknown_outcome_is_never_repeated():
    assert {action_for(e.OutcomeUnknown("?", sent=sent), k) for k in KINDS for sent in (True, False)} == {"reconcile"}
    assert not any(repeats(e.OutcomeUnknown("?", sent=sent), k) for k in KINDS for sent in (True, False))


def every_error():
    classes = [c for c in vars(e).values() if isinstance(c, type) and issubclass(c, e.VenueError)]
    return [c("x", sent=sent) for c in classes for sent in (True, False)]


@pytest.mark.parametrize("error", every_error(), ids=lambda x: f"{type(x).__name__}-{x.sent}")
def test_nothing_that_was_sent_is_created_twice(error):
    """The one rule that must hold for every error there is, also for those somebody adds."""
    if error.sent:
        assert not repeats(error, "create")


@pytest.mark.parametrize("error", [Refused("kill switch"), BadInput("units"), KeyError("x"), asyncio.CancelledError()])
def test_what_is_not_the_venues_is_not_repeated(error):
    async def run():
        async def call():
            raise error
        await with_retry(call, "read", RetryPolicy(), Slept().timing())
    with pytest.raises(type(error)):
        asyncio.run(run())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(0.01, 5), st.floats(0.01, 60), st.floats(0, 2), st.integers(0, 2**32))
def test_pauses_stay_in_their_bounds(attempt, base, cap, floor, seed):
    policy = RetryPolicy(base_s=base, cap_s=cap)
    pause = backoff_s(attempt, policy, random.Random(seed), floor)
    assert floor <= pause <= max(floor, cap)
    assert pause <= max(floor, base*2.0**min(attempt - 1, 60))


def test_pauses_are_spread_over_the_whole_range():
    chance = random.Random(1)
    pauses = [backoff_s(4, RetryPolicy(), chance) for _ in range(2000)]
    assert min(pauses) < 0.1 and max(pauses) > 3.9 and 1.8 < sum(pauses)/2000 < 2.2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["read", "cancel", "create"]))
def test_the_budget_ends_it(seed, kind):
    time, policy = Slept(), RetryPolicy()

    async def run():
        async def call():
            time.s += 0.2
            raise e.NetworkError("refused", sent=False)
        await with_retry(call, kind, policy, time.timing(seed))
    with pytest.raises(e.NetworkError):
        asyncio.run(run())
    budget = policy.create_budget_s if kind == "create" else policy.budget_s
    assert time.s <= budget + 0.2 and len(time.naps) >= 3


def test_a_rate_limit_beyond_the_budget_is_not_waited_for():
    time = Slept()

    async def run():
        async def call():
            raise e.RateLimited("429", retry_at_ms=T0 + 3_600_000)
        await with_retry(call, "read", RetryPolicy(), time.timing())
    with pytest.raises(e.RateLimited):
        asyncio.run(run())
    assert time.naps == []


# The breaker

SIGNALS = {"ok": None, "timeout": lambda: e.RequestTimeout("t"), "reject": lambda: e.Rejected("r"), "limit": lambda: e.RateLimited("l"),
           "unknown": lambda: e.OutcomeUnknown("u"), "html": lambda: e.ProtocolError("h")}
BAD = {"timeout", "unknown", "html"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(SIGNALS)), max_size=30))
def test_the_breaker_opens_after_five_in_a_row_and_not_before(signals):
    time = Slept()
    breaker = Breaker("x", RetryPolicy(), time.timing())
    in_a_row = 0
    for s in signals:
        try:
            breaker.before()
        except e.CircuitOpen as held:
            assert in_a_row >= 5 and not held.sent and held.retry_at_ms >= time.clock()
            return
        assert in_a_row < 5
        breaker.succeeded() if s == "ok" else breaker.failed(SIGNALS[s]())
        in_a_row = in_a_row + 1 if s in BAD else 0


def test_half_open_lets_one_probe_through_and_doubles_after_a_failure():
    time = Slept()
    breaker = Breaker("x", RetryPolicy(), time.timing())
    opened = []
    for _ in range(5):
        breaker.failed(e.NetworkError("reset"))
    for _ in range(6):
        opened.append(breaker.state.until_s - time.s)
        time.s = breaker.state.until_s
        breaker.before()
        with pytest.raises(e.CircuitOpen):
            breaker.before()
        breaker.failed(e.NetworkError("reset"))
    assert opened == [5, 10, 20, 40, 60, 60]
    time.s = breaker.state.until_s
    breaker.before()
    breaker.succeeded()
    for _ in range(4):
        breaker.failed(e.NetworkError("reset"))
    breaker.before()


def test_a_probe_that_is_cancelled_does_not_block_for_ever():
    time = Slept()
    breaker = Breaker("x", RetryPolicy(), time.timing())
    for _ in range(5):
        breaker.failed(e.NetworkError("reset"))
    time.s = 5
    breaker.before()
    breaker.abandoned()
    breaker.before()


@pytest.mark.parametrize("error, kind", [(e.AuthError("401"), e.AuthError), (e.PermissionDenied("403"), e.PermissionDenied),
                                         (e.IpBanned("418", until_ms=T0 + 90_000), e.IpBanned), (e.Maintenance("503", until_ms=T0 + 90_000), e.Maintenance)])
def test_some_failures_open_at_once_and_stay_what_they_are(error, kind):
    time = Slept()
    breaker = Breaker("x", RetryPolicy(), time.timing())
    breaker.failed(error)
    with pytest.raises(kind) as held:
        breaker.before()
    assert held.value.sent is False
    urgent_passes = isinstance(error, e.Maintenance)
    if urgent_passes:
        breaker.before(urgent=True)
    else:
        with pytest.raises(kind):
            breaker.before(urgent=True)
    if getattr(error, "until_ms", None):
        time.s = 89.9
        with pytest.raises(kind):
            breaker.before()
        time.s = 90.0
        breaker.before()


def test_what_counts():
    for error in every_error():
        assert counts(error) == (not isinstance(error, (e.Rejected, e.RateLimited)) and type(error) is not e.VenueError), type(error)
    assert after_failure(BreakerState(failures=4), e.Rejected("no"), 0.0, RetryPolicy()) == BreakerState()
