"""Laws of what the streamer decides without asking anybody: what is news, where to ask from, when Valkey has lost something, when to write the lake."""
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.clock import MINUTE_MS, to_ms
from deskbook.market.calendar import calendar_for
from deskbook.market.candles import clean_candles
from deskbook.market.simulated import simulate_candles
from deskbook.venues.streamer import DEEP, DEEP_EVERY_S, LONGEST_GAP_MS, OVERLAP, SAVE_EVERY_S, Feed, beginning, has_lost, keep, next_question, save_due

HOUR = simulate_candles(["EUR_USD"], "2025-11-04T10:00:00Z", "2025-11-04T11:00:00Z")
OTHER = HOUR.with_columns(high=pl.col("high")*1.0003)
BENT = HOUR.with_columns(high=pl.col("low")*0.9)
FORMING = HOUR.with_columns(complete=pl.lit(False))
START = to_ms(HOUR["time"][0])
SOURCES = {"hour": HOUR, "other": OTHER, "bent": BENT, "forming": FORMING}
ANSWERS = st.lists(st.lists(st.tuples(st.sampled_from(["hour", *SOURCES]), st.integers(0, 9)), max_size=8), max_size=8)


def feed(**told):
    return Feed("EUR_USD", calendar_for("EUR_USD"), START, **told)


@settings(deadline=None)
@given(ANSWERS)
def test_what_is_owed_is_what_the_venue_told_last(answers):
    """Doubled, revised, broken and unfinished candles in any order: Valkey and the lake end with the last good word on each minute, and are not told it twice."""
    f, want = feed(), {}
    for picks in answers:
        frame = pl.concat([HOUR.clear(), *(SOURCES[name][i] for name, i in picks)])
        owed = sum(x.height for x in f.owed)
        good = {t: row for t, row in zip(*(lambda c: (c["time"].to_list(), c.iter_rows()))(clean_candles(frame).candles))}
        told = {t: row for t, row in good.items() if want.get(t) != row}
        want |= good
        keep(f, frame, MINUTE_MS)
        assert sum(x.height for x in f.owed) - owed == len(told), "only what is new or revised"
    got = clean_candles(pl.concat([HOUR.clear(), *f.owed])).candles
    assert dict(zip(got["time"].to_list(), got.iter_rows())) == want
    saved = clean_candles(pl.concat([HOUR.clear(), *f.unsaved]))
    assert saved.candles.equals(got)
    assert f.refused <= {START + i*MINUTE_MS for picks in answers for _, i in picks}
    if want:
        assert f.newest_ms == to_ms(max(want)) and f.since_ms == f.newest_ms - OVERLAP*MINUTE_MS


@given(back=st.integers(-10, 10) | st.integers(0, 3*LONGEST_GAP_MS//MINUTE_MS), retention=st.integers(0, 60), backfill=st.integers(0, 600))
def test_a_feed_begins_where_the_lake_ends_and_asks_for_no_hole(back, retention, backfill):
    """`back`: minutes from the end of the lake until now."""
    newest = to_ms(HOUR["time"][-1])
    now = newest + back*MINUTE_MS
    begun = beginning(HOUR, now - retention*MINUTE_MS, now, MINUTE_MS, backfill*MINUTE_MS)
    known = [t for t in HOUR["time"].dt.epoch("ms") if t <= now]
    assert begun.newest_ms == (known[-1] if known else None)
    assert begun.since_ms == max(known[-1] - OVERLAP*MINUTE_MS, now - LONGEST_GAP_MS)
    assert begun.owed["time"].dt.epoch("ms").to_list() == [t for t in known if t >= now - retention*MINUTE_MS]
    f = feed(recent=begun.recent, newest_ms=begun.newest_ms, since_ms=begun.since_ms)
    keep(f, HOUR.filter(pl.col("time").dt.epoch("ms") <= now).tail(DEEP), MINUTE_MS)
    assert not f.owed, "what the lake holds is no news"


@given(st.integers(0, 10), st.none() | st.integers(0, 100), st.floats(0, 2*DEEP_EVERY_S))
def test_a_question_never_begins_later_than_it_must(lag, newest, passed_s):
    newest_ms = None if newest is None else START + newest*MINUTE_MS
    since = START - lag*MINUTE_MS
    q = next_question(since, newest_ms, 1000.0, 1000.0 + passed_s, MINUTE_MS)
    assert q.since_ms <= since and q.deep == (newest is not None and 1000.0 + passed_s - 1000.0 >= DEEP_EVERY_S)
    assert q.since_ms == (min(since, newest_ms - DEEP*MINUTE_MS) if q.deep else since)


@given(st.none() | st.integers(0, 3), st.none() | st.integers(0, 3), st.none() | st.sampled_from("ab"))
def test_a_loss_is_seen_by_the_end_or_by_the_birth(took, newest, born):
    lost = has_lost(feed(put_ms=took, born="a"), newest, born)
    assert lost == (took is not None and (born != "a" or (newest is None and took > 0) or (newest is not None and newest < took)))


@given(st.floats(0, 300), st.integers(START, START + 10*MINUTE_MS) | st.integers(START, START + 6000))
def test_the_lake_waits_for_gates_but_not_for_ever(passed_s, now_ms):
    due = save_due(passed_s, now_ms, MINUTE_MS)
    closing = now_ms % MINUTE_MS < 5000
    assert not due or (passed_s >= SAVE_EVERY_S and (not closing or passed_s >= 2*SAVE_EVERY_S))
    assert due or passed_s < SAVE_EVERY_S or (closing and passed_s < 2*SAVE_EVERY_S)
