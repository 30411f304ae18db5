"""The rules at the door of the candle frame, on generated and on real rows."""
import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import DataError
from deskbook.market.candles import CANDLE_SCHEMA, FEW, PRICE_COLUMNS, QUOTE_COLUMNS, clean_candles, conform, empty_candles, is_clean, normalise_instrument

T0 = 1_762_131_780_000
usual = st.integers(8, 12).map(lambda k: k / 10)  # few values, so that every order of open, high, low and close comes up
price = st.one_of(*[usual] * 20, st.floats(0.5, 2.0), st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, None]))
row = st.fixed_dictionaries({
    "instrument": st.sampled_from(["EUR_USD", "eurusd", "BTC/USDT:USDT", "../x", None]), "time": st.one_of(st.integers(0, 6).map(lambda k: T0 + 60_000 * k), st.none()),
    **dict.fromkeys(PRICE_COLUMNS, price), "volume": price, "bid_open": price, "ask_open": price, "complete": st.sampled_from([True, True, True, False, None])})
SCHEMA = {"instrument": pl.String, "time": pl.Int64, **dict.fromkeys((*PRICE_COLUMNS, "volume", "bid_open", "ask_open"), pl.Float64), "complete": pl.Boolean}


def frame(rows):
    return pl.DataFrame(rows, schema=SCHEMA)


@given(st.lists(row, max_size=40))
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_and_the_promises_hold(rows):
    raw = frame(rows)
    out = clean_candles(raw)
    c = out.candles
    assert c.schema == pl.Schema(CANDLE_SCHEMA)
    assert c.height + out.quarantine.height == raw.height
    assert sum(out.reasons.values()) == out.quarantine.height
    assert c.select("instrument", "time").is_duplicated().sum() == 0
    assert c.equals(c.sort("instrument", "time"))
    assert c["complete"].all()
    for o, h, lo, cl in c.select(PRICE_COLUMNS).iter_rows():
        assert 0 < lo <= min(o, cl) <= max(o, cl) <= h < math.inf
    for name in ("volume", "bid_open", "ask_open"):
        assert c[name].drop_nulls().is_finite().all()


@given(st.lists(row, max_size=40))
@settings(max_examples=100, deadline=None)
def test_cleaning_is_idempotent(rows):
    once = clean_candles(frame(rows))
    twice = clean_candles(once.candles)
    assert twice.candles.equals(once.candles) and twice.quarantine.is_empty() and not twice.blanked


@given(st.lists(row, max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_last_good_row_of_a_minute_wins(rows):
    def good(r):
        p = [r[c] for c in PRICE_COLUMNS]
        return (r["instrument"] not in (None, "../x") and r["time"] is not None and r["complete"] is not False
            and all(x is not None and math.isfinite(x) and x > 0 for x in p) and p[1] >= max(p[0], p[3]) and p[2] <= min(p[0], p[3]))
    oracle = {(normalise_instrument(r["instrument"]), r["time"]): r["close"] for r in rows if good(r)}
    got = clean_candles(frame(rows)).candles.select("instrument", pl.col("time").dt.epoch("ms"), "close")
    assert {(i, t): c for i, t, c in got.iter_rows()} == oracle


@pytest.mark.parametrize("dtype", [pl.Datetime("ns", "UTC"), pl.Datetime("us"), pl.Datetime("ms", "America/New_York")])
def test_times_of_any_unit_and_zone_become_utc_milliseconds(dtype):
    base = pl.Series("time", [T0], pl.Int64).cast(pl.Datetime("ms", "UTC"))
    time = base.dt.convert_time_zone(dtype.time_zone).cast(dtype) if dtype.time_zone else base.dt.replace_time_zone(None).cast(dtype)
    raw = pl.DataFrame({"instrument": ["EUR_USD"], **{c: [1.1] for c in PRICE_COLUMNS}}).with_columns(time=time)
    assert clean_candles(raw).candles["time"].dt.epoch("ms").to_list() == [T0]


def test_iso_text_and_unreadable_times():
    raw = pl.DataFrame({"instrument": ["EUR_USD"] * 3, "time": ["2025-11-03T01:03:00Z", "2025-11-02T20:04:00-05:00", "soon"], **{c: [1.1] * 3 for c in PRICE_COLUMNS}})
    out = clean_candles(raw)
    assert out.candles["time"].dt.epoch("ms").to_list() == [T0, T0 + 60_000] and out.reasons == {"no_time": 1}


def test_constant_unsorted_and_text_prices():
    raw = pl.DataFrame({"instrument": ["EUR_USD"] * 3, "time": [T0 + 120_000, T0, T0 + 60_000], **{c: ["1.1", "1.1", "n/a"] for c in PRICE_COLUMNS}})
    out = clean_candles(raw)
    assert out.candles["close"].to_list() == [1.1, 1.1] and out.candles["time"].is_sorted() and out.reasons == {"not_finite": 1}


def test_missing_columns_are_named():
    with pytest.raises(DataError, match=r"high, low.*instrument, time, open, close"):
        conform(empty_candles().select("instrument", "time", "open", "close"))


FILES = {"oanda_EURUSD_M1_201405": (15366, 0), "fxcm_EURUSD_M1_201405": (15857, 977), "fxcm_USDJPY_M1_201302": (28761, 1344),
    "cme_6EH4_M1_202401": (29996, 0), "perp_BTC-PERP_M1_202201": (45031, 0), "h1/mt_XAUUSD_H1_2015_2022": (42172, 0)}


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_real_files_pass_whole_and_crossed_bars_are_counted(shared_data, name):
    raw = pl.read_parquet(shared_data / "candles" / f"{name}.parquet").with_columns(instrument=pl.lit("X"))
    out = clean_candles(raw)
    assert (out.candles.height, out.candles["crossed"].sum(), out.quarantine.height, out.blanked) == (*FILES[name], 0, {})


def by_the_rules(df):
    """What the rules say about a frame, however small: among rows of another pair, which are taken out again."""
    other = clean_candles(frame([{**dict.fromkeys(SCHEMA), "instrument": "AUD_NZD", "time": T0 + 60_000 * k, **dict.fromkeys(PRICE_COLUMNS, 1.0)} for k in range(FEW + 1)])).candles
    out = clean_candles(pl.concat([other, df]))
    ours = out.candles.filter(pl.col("instrument") != "AUD_NZD")
    return ours, out.quarantine, out.blanked


good = st.fixed_dictionaries({"time": st.integers(0, 9).map(lambda k: T0 + 60_000 * k), **dict.fromkeys(PRICE_COLUMNS, usual), "volume": st.sampled_from([None, 0.0, 12.0]),
                              **dict.fromkeys(QUOTE_COLUMNS, st.sampled_from([None, 1.0, 1.1]))})
spoil = st.sampled_from([None, ("high", 0.1), ("low", 9.0), ("open", math.nan), ("close", math.inf), ("open", 0.0), ("low", None), ("volume", -1.0), ("volume", math.nan), ("ask_close", math.nan),
                         ("bid_open", -1.0), ("bid_low", 0.0), ("complete", False), ("complete", None), ("crossed", True), ("crossed", False), ("instrument", "eurusd"), ("instrument", None), ("time", None)])


@given(st.lists(good, max_size=8), spoil, st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_quick_look_at_a_few_rows_agrees_with_the_rules(rows, bad, ordered):
    rows = sorted({r["time"]: r for r in rows}.values(), key=lambda r: r["time"]) if ordered else rows
    rows = [r | {"high": max(r[c] for c in PRICE_COLUMNS), "low": min(r[c] for c in PRICE_COLUMNS)} for r in rows]
    df = conform(pl.DataFrame([{"instrument": "EUR_USD", "complete": True, "crossed": any((r[f"bid_{p}"] or 0) > (r[f"ask_{p}"] or 9) for p in ("open", "close"))} | r for r in rows],
                              schema={**{c: CANDLE_SCHEMA[c] for c in CANDLE_SCHEMA}, "time": pl.Int64}))
    if bad and df.height:
        df = df.with_columns(pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(pl.lit(bad[1], CANDLE_SCHEMA[bad[0]])).otherwise(pl.col(bad[0])).alias(bad[0]))
    ours, quarantine, blanked = by_the_rules(df)
    untouched = ours.equals(df) and quarantine.is_empty() and not blanked
    assert is_clean(df) == untouched
    assert clean_candles(df).candles.equals(ours) and clean_candles(df).quarantine.height == quarantine.height
