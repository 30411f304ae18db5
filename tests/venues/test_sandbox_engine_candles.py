"""Candles and prices of the sandbox come from the same ticks, and a candle that is complete never changes."""
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.clock import DAY_MS, MINUTE_MS, iso, to_ms
from deskbook.core.errors import BadInput, DataError, NotFound
from deskbook.market.candles import conform
from deskbook.venues.sandbox.candles import GRANULARITY_MS, candles
from deskbook.venues.sandbox.market import FrameSource, Levels, Market, SimulatedSource, first_hit, home_rate, lake_source, minute_path, set_price
from deskbook.venues.sandbox.wire import WireError, parse_time

MARKET, NAME, NOW = Market(SimulatedSource(("EUR_USD", "XAU_USD"))), "EUR_USD", to_ms("2025-11-04T14:30:20Z")


def ask(granularity, price="M", now=NOW, market=MARKET, name=NAME, **q): return candles(market, name, now, granularity, price, **q)["candles"]
def at(c): return parse_time(c["time"])
def o_h_l_c(c, side="mid"): return [Decimal(c[side][k]) for k in "ohlc"]


def oracle(minutes, granularity, side):
    """Aggregation in plain Python, UTC-aligned."""
    out = {}
    for m in minutes:
        o, h, l, c = o_h_l_c(m, side)
        start = at(m) // GRANULARITY_MS[granularity] * GRANULARITY_MS[granularity]
        row = out.setdefault(start, [o, h, l, c, 0])
        row[1], row[2], row[3], row[4] = max(row[1], h), min(row[2], l), c, row[4] + m["volume"]
    return out


@pytest.mark.parametrize("granularity", ["M2", "M5", "M10", "M15", "M30", "H1"])
@pytest.mark.parametrize("side", ["mid", "bid", "ask"])
def test_longer_candles_are_the_minutes_added_up(granularity, side):
    a, b = to_ms("2025-11-04T08:00Z"), to_ms("2025-11-04T14:00Z")
    want = oracle(ask("M1", "MBA", start_ms=a, end_ms=b), granularity, side)
    got = {at(c): [*o_h_l_c(c, side), c["volume"]] for c in ask(granularity, "MBA", start_ms=a, end_ms=b)}
    assert got == want and len(got) == 6 * 3_600_000 // GRANULARITY_MS[granularity]


@pytest.mark.parametrize("granularity", ["S5", "S10", "S15", "S30"])
def test_seconds_make_up_their_minute(granularity):
    a = to_ms("2025-11-04T14:00Z")
    for minute in ask("M1", "B", start_ms=a, end_ms=a + 10 * MINUTE_MS):
        parts = [o_h_l_c(c, "bid") for c in ask(granularity, "B", start_ms=at(minute), end_ms=at(minute) + MINUTE_MS)]
        assert [parts[0][0], max(p[1] for p in parts), min(p[2] for p in parts), parts[-1][3]] == o_h_l_c(minute, "bid")
        assert 1 <= len(parts) <= MINUTE_MS // GRANULARITY_MS[granularity]


@pytest.mark.parametrize("granularity", list(GRANULARITY_MS))
def test_every_granularity_ends_with_the_forming_candle_at_the_present_price(granularity):
    got = ask(granularity, "BA", count=3)
    q = MARKET.quote(NAME, NOW)
    assert len(got) == 3 and [c["complete"] for c in got] == [True, True, False] and [at(c) for c in got] == sorted(at(c) for c in got)
    assert (o_h_l_c(got[-1], "bid")[3], o_h_l_c(got[-1], "ask")[3]) == (q.bid_price, q.ask_price) and set(got[0]) == {"complete", "volume", "time", "bid", "ask"}
    assert at(got[-1]) <= NOW and isinstance(got[0]["volume"], int)


@given(st.integers(0, 3 * 86_400), st.sampled_from(["S30", "M1", "M5", "H1", "H4", "D"]))
@settings(max_examples=40, deadline=None)
def test_a_complete_candle_never_changes(later_s, granularity):
    then = {at(c): c for c in ask(granularity, "BA", count=5)}
    now = {at(c): c for c in ask(granularity, "BA", now=NOW + later_s * 1000, start_ms=min(then), count=20)}
    for start, c in then.items():
        if c["complete"]: assert now[start] == c
        else: assert o_h_l_c(now[start], "bid")[0] == o_h_l_c(c, "bid")[0] and o_h_l_c(now[start], "bid")[1] >= o_h_l_c(c, "bid")[1] and now[start]["volume"] >= c["volume"]


@given(st.integers(0, 4 * 86_400), st.integers(20, 400), st.sampled_from(["M1", "M5", "M15"]))
@settings(max_examples=30, deadline=None)
def test_pages_join_without_hole_or_overlap(offset_s, count, granularity):
    """`from` the last time, `includeFirst` false: over a weekend and to the end."""
    start, now = to_ms("2025-11-06T12:00Z") + offset_s * 1000, to_ms("2025-11-10T12:00Z")
    page, rows = ask(granularity, now=now, start_ms=start, count=count), []
    while page and len(rows) < 1500:
        rows += page
        page = ask(granularity, now=now, start_ms=at(page[-1]), count=count, include_first=False)
    times = [at(c) for c in rows]
    assert times == sorted(set(times)) and rows == ask(granularity, now=now, start_ms=start, count=len(rows)) and times[0] >= start - GRANULARITY_MS[granularity]


def test_a_weekend_has_no_rows_and_a_look_back_crosses_it():
    saturday, sunday = to_ms("2025-11-08T12:00Z"), to_ms("2025-11-09T22:10Z")
    assert ask("M1", now=sunday, start_ms=saturday, end_ms=to_ms("2025-11-09T21:59Z")) == []
    for granularity in ("S5", "M1", "M15", "H1"):
        got = ask(granularity, now=saturday, count=10)
        assert len(got) == 10 and iso(at(got[-1]))[:13] == "2025-11-07T21" and all(c["complete"] for c in got)
    assert [iso(at(c))[5:16] for c in ask("H1", now=sunday, count=2)] == ["11-07T21:00", "11-09T22:00"]


def test_days_begin_at_five_in_new_york_in_summer_and_winter():
    days = ask("D", now=to_ms("2025-11-06T00:00Z"), start_ms=to_ms("2025-10-28T12:00Z"), count=10)
    assert [iso(at(c))[5:16] for c in days] == [*(f"10-{d}T21:00" for d in (27, 28, 29, 30)), *(f"11-0{d}T22:00" for d in (2, 3, 4, 5))]
    assert [c["complete"] for c in days] == [True] * 7 + [False]
    assert iso(at(ask("D", now=NOW, count=1, daily_alignment=0, alignment_timezone="UTC")[0])) == "2025-11-04T00:00:00Z"
    assert {iso(at(c))[11:16] for c in ask("H4", now=to_ms("2025-07-04T12:00Z"), count=20)} <= {f"{h:02d}:00" for h in (1, 5, 9, 13, 17, 21)}


def test_weeks_and_months():
    assert [iso(at(c))[:10] for c in ask("W", count=2)] == ["2025-10-24", "2025-10-31"]
    assert [iso(at(c))[:10] for c in ask("W", count=2, weekly_alignment="Monday")] == ["2025-10-27", "2025-11-03"]
    assert [iso(at(c))[:13] for c in ask("M", count=2)] == ["2025-09-30T21", "2025-10-31T21"]


@pytest.mark.parametrize(("q", "says"), [
    ({"granularity": "M3"}, "Invalid value specified for 'granularity'"), ({"price": "MX"}, "Invalid value specified for 'price'"), ({"price": ""}, "Invalid value specified for 'price'"),
    ({"count": 0}, "Invalid value specified for 'count'"), ({"count": 5001}, "Maximum value for 'count' exceeded"), ({"start_ms": NOW + 1}, "Invalid value specified for 'from'"),
    ({"end_ms": NOW + 1}, "Invalid value specified for 'to'"), ({"start_ms": NOW - 10, "end_ms": NOW - 20}, "Invalid value specified for 'to'"),
    ({"start_ms": NOW - DAY_MS, "end_ms": NOW, "count": 5}, "Invalid value specified for 'count'"), ({"start_ms": NOW - 6 * DAY_MS, "end_ms": NOW}, "Maximum value for 'count' exceeded"),
    ({"daily_alignment": 24}, "Invalid value specified for 'dailyAlignment'"), ({"alignment_timezone": "Mars/Base"}, "Invalid value specified for 'alignmentTimezone'"),
    ({"weekly_alignment": "Someday"}, "Invalid value specified for 'weeklyAlignment'")])
def test_refusals(q, says):
    with pytest.raises(WireError) as e: candles(MARKET, NAME, NOW, **{"granularity": "M1", **q})
    assert (e.value.status, e.value.body["errorMessage"][:len(says)]) == (400, says)


def test_the_largest_page():
    got = ask("M1", count=5000, start_ms=NOW - 10 * DAY_MS)
    assert len(got) == 5000 and len({at(c) for c in got}) == 5000
    assert len(ask("M1", start_ms=NOW - 5000 * MINUTE_MS + 1, end_ms=NOW)) > 2000


def test_a_rising_minute_sees_its_low_first():
    day = MARKET.day(NAME, NOW // DAY_MS)
    for row in range(0, len(day.times), 7):
        p = minute_path(day, row, NAME)
        rising, low, high = day.bid[row, 3] >= day.bid[row, 0], p.bid.index(min(p.bid)), len(p) - 1 - p.bid[::-1].index(max(p.bid))
        if day.bid[row, 2] < min(p.bid[0], p.bid[-1]) and day.bid[row, 1] > max(p.bid[0], p.bid[-1]): assert (low < high) == rising
        assert [p.bid[0], max(p.bid), min(p.bid), p.bid[-1]] == day.bid[row].tolist() and 4 <= len(p) <= 240
        assert p.time(0) == p.start and all(a < b for a, b in zip(map(p.time, range(len(p))), map(p.time, range(1, len(p))))) and p.time(len(p) - 1) < p.start + MINUTE_MS
        assert all(p.at(p.time(k)) == k and (k == 0 or p.at(p.time(k) - 1) == k - 1) for k in range(len(p)))


def test_a_remembered_quote_ends_with_its_tick():
    for t in range(NOW - 25_000, NOW + 70_000, 31):
        q, p = MARKET.quote(NAME, t), MARKET.path(NAME, t)
        k = p.at(t)
        assert (q.bid, q.ask, q.time_ms) == (p.bid[k], p.ask[k], p.time(k))


# -- replays

def frame(prices, start="2025-11-04T08:00Z", every=1, quotes=True, name=NAME):
    """One minute per (open, high, low, close) in ticks, `every` so many minutes."""
    rows = [{"instrument": name, "time": to_ms(start) + n * every * MINUTE_MS, **{k: v / 1e5 for k, v in zip(("open", "high", "low", "close"), p)}, "volume": 7.0,
        **({f"{s}_{k}": (v + d) / 1e5 for s, d in (("bid", -6), ("ask", 6)) for k, v in zip(("open", "high", "low", "close"), p)} if quotes else {})} for n, p in enumerate(prices)]
    return conform(pl.DataFrame(rows))


def test_a_minute_without_ticks_has_no_row_and_the_price_stays():
    market = Market(FrameSource(frame([(108500, 108520, 108490, 108510)] * 4, every=2)))
    now = to_ms("2025-11-04T08:05:30Z")
    assert [iso(at(c))[14:16] for c in ask("M1", now=now, market=market, count=9)] == ["00", "02", "04"]
    q = market.quote(NAME, now)
    assert (q.bid, q.ask, iso(q.time_ms)[:16], q.tradeable) == (108504, 108516, "2025-11-04T08:04", True)
    assert [c["complete"] for c in ask("M5", now=now, market=market, count=9)] == [True]
    over = market.quote(NAME, to_ms("2025-11-04T08:08Z"))
    assert (over.bid, over.tradeable) == (108504, False)


def test_candles_without_quotes_get_the_usual_spread():
    market = Market(FrameSource(frame([(108500, 108520, 108490, 108510)], quotes=False)))
    q = market.quote(NAME, to_ms("2025-11-04T08:00Z"))
    assert (q.bid, q.ask) == (108494, 108506)


def test_the_spread_can_be_widened():
    wide, here = Market(SimulatedSource((NAME,)), spread_multiple=3.0), to_ms("2025-11-04T12:00Z")
    a, b = MARKET.quote(NAME, here), wide.quote(NAME, here)
    assert b.ask - b.bid == pytest.approx(3 * (a.ask - a.bid), abs=1) and abs(b.mid - a.mid) <= Decimal("0.00001")
    with pytest.raises(BadInput): Market(spread_multiple=-1)


def test_crossed_candles_are_uncrossed():
    raw = frame([(108500, 108520, 108490, 108510)]).with_columns(pl.col("bid_open") + 0.00020)
    q = Market(FrameSource(raw)).quote(NAME, to_ms("2025-11-04T08:00Z"))
    assert q.ask == q.bid + 1


def test_a_replay_of_the_lake(tmp_path):
    from deskbook.stores.lake import Lake
    minutes = SimulatedSource((NAME,)).candles(NAME, to_ms("2025-11-04"), to_ms("2025-11-05"))
    Lake(tmp_path).write_candles(minutes, "simulated")
    market = Market(lake_source([NAME], "2025-11-04", "2025-11-05", lake=str(tmp_path)))
    assert [market.quote(NAME, t) for t in range(NOW, NOW + 3000, 100)] == [MARKET.quote(NAME, t) for t in range(NOW, NOW + 3000, 100)]
    with pytest.raises(NotFound): lake_source(["USD_JPY"], "2025-11-04", "2025-11-05", lake=str(tmp_path))
    with pytest.raises(DataError): FrameSource(minutes.head(0))


# -- searching

@given(st.integers(0, 86_400), st.integers(1, 20_000_000), st.integers(-60, 60), st.sampled_from(["ask_falls", "ask_rises", "bid_rises", "bid_falls"]))
@settings(max_examples=60, deadline=None)
def test_the_first_hit_is_the_first_one(offset_s, span, away, waits):
    """Against a walk over every tick."""
    MARKET.overrides.clear()
    a = to_ms("2025-11-06T20:00Z") + offset_s * 1000
    q, b = MARKET.quote(NAME, a), a + span
    levels = Levels(**{waits: (q.ask if waits.startswith("ask") else q.bid) + away})
    want, t = None, a
    while want is None and t < b:
        t = _next_tick(t)
        tick = MARKET.quote(NAME, t)
        if t <= b and tick.tradeable and tick.time_ms == t and levels.hit(tick.bid, tick.bid, tick.ask, tick.ask): want = t
    assert first_hit(MARKET, NAME, levels, a, b) == want


def _next_tick(t):
    p = MARKET.path(NAME, t)
    k = p.at(t) + 1 if t < p.start + MINUTE_MS else len(p)
    return p.time(k) if k < len(p) else (t // MINUTE_MS + 1) * MINUTE_MS


def test_a_set_price_has_no_effect_on_candles():
    market = Market(SimulatedSource((NAME,)))
    before = ask("M1", "BA", market=market, count=5)
    set_price(market, NAME, "2.00000", "2.00010")
    assert ask("M1", "BA", market=market, count=5) == before and market.quote(NAME, NOW).ask == 200010
    for bad in (("1.0", "1.0"), ("1.000001", "1.1"), ("NaN", "1.1"), ("-1", "1")):
        with pytest.raises(BadInput): set_price(market, NAME, *bad)
    with pytest.raises(NotFound): set_price(market, "EURUSD", "1.0", "1.1")


def test_rates_through_the_dollar():
    market = Market(SimulatedSource(("EUR_USD", "USD_JPY")))
    one, two, across = home_rate(market, "JPY", "USD", NOW), home_rate(market, "EUR", "USD", NOW), home_rate(market, "JPY", "EUR", NOW)
    assert across.mid == pytest.approx(one.mid / two.mid) and across.gain < across.mid < across.loss
    back = home_rate(market, "EUR", "JPY", NOW)
    assert float(back.mid * across.mid) == pytest.approx(1, rel=1e-6)
