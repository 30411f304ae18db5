"""Laws of what the gate worker decides without asking anybody: what a rebuild writes, when a person is called, what counts as a change."""
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from deskbook.gates.engine import GateEngine, build_gates
from deskbook.gates.payload import frame_payloads
from deskbook.gates.settings import HAZARD_FALLBACK, GateSettings
from deskbook.gates.worker import (FALLBACK_AFTER, Alarm, Pair, Past, after_gate, alarm_told, correction, first_change, index_unsure, joins, push_new, seen,
                                   split_last, trim)
from deskbook.market.calendar import calendar_for
from deskbook.market.simulated import simulate_candles
from deskbook.stores.live_state import NewCandles, candle_rows

CANDLE_FRAME = simulate_candles(["EUR_USD"], "2025-11-04T00:00:00Z", "2025-11-04T03:00:00Z")
GATES = build_gates(CANDLE_FRAME, GateSettings(stride=1)).tail(30)
TIMES = GATES["time"].dt.epoch("ms").to_list()
GATE = frame_payloads(GATES.tail(1))[0]


def times(frame):
    return frame["time"].dt.epoch("ms").to_list()


def publish(index, found, keep):
    """The index after a correction; a time holds one gate."""
    merged = index | {t: row for part in (found.later, found.now) for t, row in zip(times(part), part.iter_rows())}
    return dict(sorted(merged.items())[-keep:])


@given(n=st.integers(1, 30), published=st.integers(0, 30), wrong=st.none() | st.integers(0, 29), keep=st.sampled_from([1, 3, 8, 100]))
def test_after_a_correction_the_index_is_that_of_a_rebuild(n, published, wrong, keep):
    """Whatever was published, and from wherever on it was wrong: kept gates are right, and the new ones are there."""
    gates, published = GATES.head(n), min(published, n)
    right = dict(zip(TIMES, GATES.iter_rows()))
    index = {t: right[t] if wrong is None or i < wrong else "wrong" for i, t in enumerate(TIMES[:published])}
    index = dict(sorted(index.items())[-keep:])
    last_ms = TIMES[published - 1] if published else None
    found = correction(gates, last_ms, 0 if not published else None if wrong is None else TIMES[wrong], keep)
    assert publish(index, found, keep) == dict(list(right.items())[max(0, n - keep):n])
    assert max(found.later.height, found.now.height) <= keep
    assert not set(times(found.later)) & set(times(found.now))
    assert times(found.known) == (TIMES[:published] if published else TIMES[:n - 1])


@given(n=st.integers(1, 30), published=st.integers(1, 30), wrong=st.none() | st.integers(0, 29))
def test_nobody_waits_for_old_gates(n, published, wrong):
    """At once goes what is newer than the last gate. Only where nothing is newer, the last one itself, if it is wrong."""
    published = min(published, n)
    found = correction(GATES.head(n), TIMES[published - 1], None if wrong is None else TIMES[wrong], 100)
    stale = TIMES[n - 1:n] if wrong is not None and wrong < n else []
    assert times(found.now) == (TIMES[published:n] or stale)


def gate_at(i, asks):
    return GATE.model_copy(update={"ts_ms": GATE.ts_ms + i*60_000, "reasons": [HAZARD_FALLBACK] if asks else []})


OFTEN = st.sampled_from((True, True, True, False))  # or hardly a hazard would last


@given(st.lists(st.tuples(OFTEN, OFTEN, st.booleans()), max_size=30))
def test_each_hazard_that_lasts_calls_once(story):
    """Each gate asks or not, is fresh or not, and whoever is called can be told at once or not."""
    alarm, in_row, called = Alarm(), 0, []
    for i, (asks, fresh, reached) in enumerate(story):
        gate = gate_at(i, asks)
        due = alarm.due
        alarm = after_gate(alarm, gate, fresh)
        assert after_gate(alarm, gate, fresh) == alarm, "a gate counts once"
        in_row = in_row + 1 if asks else 0
        assert (alarm.in_row, alarm.counted_ms) == (in_row, gate.ts_ms)
        if due is None and alarm.due is not None:
            assert asks and fresh and in_row >= FALLBACK_AFTER and alarm.due == gate
            first = i - in_row + 1  # where this hazard began
            assert first not in called, "nobody is called twice about the same"
            called.append(first)
        if asks and fresh and in_row >= FALLBACK_AFTER:
            assert alarm.due is not None or alarm.told, "somebody is, or has been, called"
        if alarm.due is not None and reached:
            alarm = alarm_told(alarm)
            assert alarm.due is None and alarm.told == (in_row > 0)


@given(st.lists(st.integers(0, 20), min_size=1, unique=True).map(sorted), st.none() | st.integers(0, 20))
def test_the_last_gate_never_goes_back(minutes, last):
    gates = [gate_at(i, False) for i in minutes]
    older, new = split_last(gates, None if last is None else gate_at(last, False))
    assert [*older, *([new] if new else [])] == gates
    assert (new is None) == (last is not None and minutes[-1] < last)


CANDLES = st.dictionaries(st.integers(0, 15), st.tuples(st.integers(0, 2)), max_size=12)


@given(CANDLES, CANDLES)
def test_before_the_first_change_both_are_the_same(before, after):
    found = first_change(before, after)
    low, high = (max(min(before), min(after)), max(before)) if before and after else (1, 0)
    for t in range(low, high + 1):
        if found is None or t < found:
            assert before.get(t) == after.get(t)
    if found is not None:
        assert low <= found <= high and before.get(found) != after.get(found)


@given(CANDLES, st.integers(2, 12))
def test_what_is_forgotten_is_older_than_what_is_kept(taken, most):
    kept = trim(taken, most)
    assert len(kept) <= most and (kept == taken if len(taken) <= most else len(kept) == most//2)
    assert all(taken[t] == v for t, v in kept.items())
    assert max([t for t in taken if t not in kept], default=-1) < min(kept, default=0)


def fed(n):
    """A past of so many candles."""
    engine = GateEngine("EUR_USD", GateSettings(stride=1))
    engine.push_many(CANDLE_FRAME.head(n))
    return Past(engine, "7:0", seen(CANDLE_FRAME.head(n)))


def test_candles_join_on_only_where_the_newest_one_stands_as_it_was():
    past, rows = fed(90), candle_rows(CANDLE_FRAME.slice(89, 3))
    assert joins(past, NewCandles(rows, "7:0")) and joins(past, NewCandles(rows[:1], "7:0"))
    for got in (NewCandles(rows[1:], "7:0"), NewCandles(rows, "7:1"), NewCandles(rows, "8:0"), NewCandles(rows, None), NewCandles([], None)):
        assert not joins(past, got)
    assert [g.ts_ms for g in push_new(past, rows)] == [r["time"] for r in rows[1:]] and past.taken == seen(CANDLE_FRAME.head(92))


def test_an_index_is_sure_only_of_a_pair_that_is_whole_and_of_the_same_candles():
    def pair(**told):
        return Pair("EUR_USD", calendar_for("EUR_USD"), **({"past": fed(90)} | told))
    assert not index_unsure(pair(), "7:0") and not index_unsure(pair(), "7:5")
    assert index_unsure(pair(), "8:0") and index_unsure(pair(past=None), "7:0") and index_unsure(pair(past=Past(fed(90).engine, "7:0")), "7:0")
    assert index_unsure(pair(waiting=[GATE]), "7:0") and index_unsure(pair(lost=True), "7:0")


def test_no_gates_are_corrected_into_none():
    found = correction(GATES.clear(), None, 0, 10)
    assert [f.height for f in found] == [0, 0, 0] and isinstance(found.now, pl.DataFrame)
