"""The venue's clock: never ahead, whatever the network does; jumps are seen; a wrong clock stops trading."""
import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.venues import errors as e
from deskbook.venues.clock_offset import ClockLimits, ClockWatch, Sample, best_offset, clock_status, jump_ms, venue_now_ms
from deskbook.venues.retry import Timing

T0 = 1_735_689_600_000
ms = st.floats(0, 3_000)


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e7, 1e7), st.lists(st.tuples(ms, ms), min_size=1, max_size=5), st.floats(0, 300))
def test_never_ahead_and_never_more_than_the_error_behind(ahead_ms, trips, later_s):
    """The venue's clock is `ahead_ms` ahead; each answer takes its own time there and back."""
    samples, now = [], 10.0
    for out, back in trips:
        sent = now
        told = T0 + (now + out/1000)*1000 + ahead_ms
        now += (out + back)/1000
        samples.append(Sample(sent, now, T0 + now*1000, int(told)))
    o = best_offset(samples)
    assert o.error_ms == pytest.approx(min(a + b for a, b in trips)/2, abs=1e-3)
    assert abs(o.offset_ms - ahead_ms) <= o.error_ms + 2
    true = T0 + (now + later_s)*1000 + ahead_ms
    told = venue_now_ms(o, now + later_s)
    assert true - 2*o.error_ms - 3 <= told <= true + 1e-3


@given(st.integers(-10**9, 10**9), st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_jump_is_what_the_wall_moved_by_itself(by, a, b):
    assert jump_ms(T0, a, T0 + b*1000 + by, a + b) == pytest.approx(by, abs=1)


def test_status_counts_only_what_is_certain():
    limits = ClockLimits(warn_ms=500, stop_ms=2500)
    o = best_offset([Sample(0, 8.0, T0, T0 + 2000)])  # 6 s ahead, give or take 4
    assert (o.offset_ms, o.certain_ms, clock_status(o, limits)) == (6000, 2000, "warn")


class Clocks:
    def __init__(self, ahead=0.0):
        self.mono, self.wall_off, self.ahead, self.broken, self.asked = 0.0, 0.0, ahead, 0, []

    def monotonic(self):
        return self.mono

    def clock(self):
        return round(T0 + self.mono*1000 + self.wall_off)

    async def sleep(self, s):
        self.mono += s
        await asyncio.sleep(0)

    async def ask(self):
        self.asked.append(self.mono)
        if self.broken:
            self.broken -= 1
            raise e.RequestTimeout("no answer")
        self.mono += 0.01
        return round(T0 + self.mono*1000 + self.ahead)

    def watch(self, **limits):
        return ClockWatch(self.ask, Timing(self.clock, self.monotonic, self.sleep, random.Random(0)), ClockLimits(**limits), "oanda")


def test_one_lost_answer_of_three_does_not_matter_three_do():
    c = Clocks(ahead=700)
    c.broken = 2
    assert asyncio.run(c.watch().measure()).offset_ms == pytest.approx(705, abs=1)
    w = c.watch()
    c.broken = 3
    with pytest.raises(e.RequestTimeout):
        asyncio.run(w.measure())
    assert w.status == "unknown" and w.failures == 1 and w.now_ms() == c.clock()
    w.check()


def test_it_measures_every_five_minutes_and_at_once_after_a_jump():
    c, stop = Clocks(), asyncio.Event()
    w = c.watch()

    async def sleep(s):
        await c.sleep(s)
        if 400 <= c.mono and not w.jumps:
            c.wall_off = 90_000.0
        if c.mono > 450:
            stop.set()
    w.timing = Timing(c.clock, c.monotonic, sleep, random.Random(0))
    asyncio.run(w.run(stop))
    starts = sorted({round(t) for t in c.asked})
    assert starts[0] == 0 and 299 <= starts[1] <= 302 and 399 <= starts[2] <= 403 and len(c.asked) == 9
    assert w.jumps == 1 and w.status == "stop"
    with pytest.raises(e.ClockSkew) as skew:
        w.check()
    assert skew.value.offset_ms == pytest.approx(-90_000, abs=20) and not skew.value.sent


def test_a_watch_survives_a_venue_that_is_away(caplog):
    c, stop = Clocks(), asyncio.Event()
    w = c.watch(every_s=5)
    c.broken = 6

    async def sleep(s):
        await c.sleep(s)
        if c.mono > 12:
            stop.set()
    w.timing = Timing(c.clock, c.monotonic, sleep, random.Random(0))
    asyncio.run(w.run(stop))
    assert w.status == "ok" and "could not be read" in caplog.text
