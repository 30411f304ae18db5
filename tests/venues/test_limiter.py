"""The limiter: its rate is never exceeded in any window, and the share for getting out is always there."""
import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput
from deskbook.venues.limiter import Limit, LimitKey, Limiter, ask, meter, refused, retry_after_s, told
from deskbook.venues.retry import Timing

KEY = LimitKey("oanda", "ip", "rest")


def most_in_a_window(times, width):
    """The largest number of `times` in any half-open window of `width`."""
    best, first = 0, 0
    for last, t in enumerate(times):
        while times[first] <= t - width + 1e-9:
            first += 1
        best = max(best, last - first + 1)
    return best


limits = st.builds(Limit, st.floats(4, 600), st.sampled_from([1.0, 5.0, 10.0]), st.floats(0.5, 1.0), st.floats(0.0, 0.6))
gaps = st.lists(st.tuples(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)), st.booleans()), min_size=1, max_size=400)


@settings(max_examples=150, deadline=None)
@given(limits, gaps)
def test_no_window_holds_more_than_the_budget(limit, requests):
    m, now, passed, ordinary = meter(limit, 0.0), 0.0, [], []
    for gap, urgent in requests:
        now += gap
        m, wait = ask(m, urgent, now)
        if wait == 0:
            passed.append(now)
            if not urgent:
                ordinary.append(now)
    # A bucket that is full lets one request through however small its budget is.
    assert most_in_a_window(passed, limit.per_s) <= max(limit.budget, 1) + 1
    assert most_in_a_window(ordinary, limit.per_s) <= max(limit.budget*(1 - limit.reserved_frac), 1) + 1


@settings(max_examples=100, deadline=None)
@given(st.floats(20, 600), st.lists(st.floats(0, 0.02), min_size=50, max_size=500))
def test_the_reserved_share_is_there_however_hard_others_push(requests_per_s, pushes):
    limit = Limit(requests_per_s)
    m, now = meter(limit, 0.0), 0.0
    for gap in pushes:
        now += gap
        m, _ = ask(m, False, now)
    share = int(m.whole.capacity - m.ordinary.capacity)
    assert share >= int(limit.budget/4*0.25)
    for _ in range(share):
        m, wait = ask(m, True, now)
        assert wait == 0


def test_the_ordinary_rate_is_a_share_and_the_rest_is_kept():
    limit, m, n = Limit(120), meter(Limit(120), 0.0), 0
    for k in range(60_000):
        m, wait = ask(m, False, k/1000)
        n += wait == 0
    assert 0.55*84*60 <= n <= 0.75*84*60 + 1
    urgent = 0
    for k in range(60_000, 120_000):
        m, _ = ask(m, False, k/1000)
        m, wait = ask(m, True, k/1000) if k % 75 == 0 else (m, 1)
        urgent += wait == 0
    assert urgent == 800
    assert limit.budget == 84


class Slept:
    def __init__(self):
        self.s = 0.0

    def monotonic(self):
        return self.s

    async def sleep(self, s):
        self.s += s
        await asyncio.sleep(0)


@pytest.mark.parametrize("n", [1, 84, 500])
def test_many_at_once_pass_one_after_another_and_in_turn(n):
    async def run():
        t, order = Slept(), []
        limiter = Limiter({KEY: Limit(120)}, Timing(monotonic=t.monotonic, sleep=t.sleep))

        async def one(k):
            await limiter.acquire(KEY)
            order.append((t.s, k))
        await asyncio.gather(*(one(k) for k in range(n)))
        return order
    order = asyncio.run(run())
    assert [k for _, k in order] == list(range(n))
    assert most_in_a_window([s for s, _ in order], 1.0) <= 0.75*84 + 1


def test_a_cancel_overtakes_those_who_wait():
    async def run():
        limiter = Limiter({KEY: Limit(20)}, Timing())
        crowd = [asyncio.create_task(limiter.acquire(KEY)) for _ in range(60)]
        await asyncio.sleep(0.05)
        waited = await asyncio.wait_for(limiter.acquire(KEY, urgent=True), 0.05)
        left = sum(not t.done() for t in crowd)
        for t in crowd:
            t.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        # Those who went away hold nothing: the next one passes as if they had not been.
        assert await asyncio.wait_for(limiter.acquire(KEY), 2) >= 0
        return waited, left
    waited, left = asyncio.run(run())
    assert waited == 0 and left > 40


def test_a_refusal_holds_the_others_and_not_the_way_out():
    m = refused(meter(Limit(120), 0.0), urgent=False, now_s=10.0, retry_after_s=4)
    assert ask(m, False, 11.0)[1] == pytest.approx(3)
    assert ask(m, True, 11.0)[1] == 0
    m = refused(m, urgent=True, now_s=11.0)
    assert ask(m, True, 11.5)[1] == pytest.approx(0.5)
    assert ask(m, False, 14.0)[1] == 0


def test_a_refusal_without_a_time_holds_a_second():
    assert ask(refused(meter(Limit(120), 0.0), False, 0.0), False, 0.25)[1] == pytest.approx(0.75)


def test_what_the_venue_counts_wins_when_it_is_less():
    m = told(meter(Limit(120), 0.0), remaining=1, now_s=0.0, reset_s=5)
    m, wait = ask(m, False, 0.0)
    assert wait == 0
    assert ask(m, False, 0.0)[1] > 0
    m = told(m, remaining=0, now_s=0.0, reset_s=5)
    assert ask(m, False, 1.0)[1] == pytest.approx(4)
    assert told(meter(Limit(120), 0.0), remaining=1e9, now_s=0.0).ordinary.tokens == meter(Limit(120), 0.0).ordinary.tokens


@pytest.mark.parametrize("kw", [dict(requests=0), dict(requests=120, per_s=0), dict(requests=120, used_frac=1.5), dict(requests=120, reserved_frac=1), dict(requests=1)])
def test_a_limit_that_is_none_is_refused(kw):
    with pytest.raises(BadInput):
        Limit(**kw)


@given(st.text(max_size=40))
def test_any_header_is_read_or_ignored(text):
    got = retry_after_s(text, 1_735_689_600_000)
    assert got is None or 0 <= got <= 3600


def test_time_that_stands_still_or_goes_back_gives_no_tokens():
    m, now = meter(Limit(120), 100.0), 100.0
    rng, passed = random.Random(3), 0
    for _ in range(500):
        m, wait = ask(m, False, now - rng.random()*50)
        passed += wait == 0
    assert passed == m.ordinary.capacity
