"""Forward returns: the rules one by one, real candles, and bad input."""
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from deskbook.core.errors import BadInput, DataError, NotFound
from deskbook.market.calendar import TradingCalendar, calendar_for
from deskbook.studies.costs import cost_model
from deskbook.studies.forward import DROP_REASONS, forward_returns

TIME = pl.Datetime("ms", "UTC")


def times(start, n, step="1m"):
    a = pl.Series([start]).str.to_datetime(time_unit="ms", time_zone="UTC").item()
    return pl.Series("time", [a + timedelta(minutes=i) for i in range(n)], dtype=TIME)


def bars(start, bid, name="EUR_USD", spread=1e-4):
    b = pl.Series(bid, dtype=pl.Float64)
    q = {f"{s}_{x}": b + (spread if s == "ask" else 0) for s in ("bid", "ask") for x in ("open", "high", "low", "close")}
    return pl.DataFrame({"instrument": name, "time": times(start, len(b)), **{x: b + spread / 2 for x in ("open", "high", "low", "close")}, **q, "complete": True})


def gates(*asof, name="EUR_USD"):
    a = pl.Series("asof", list(asof)).str.to_datetime(time_unit="ms", time_zone="UTC").cast(TIME)
    return pl.DataFrame({"instrument": name, "time": a.dt.offset_by("-1m"), "asof": a})


def real(shared_data, file, name):
    f = pl.read_parquet(shared_data / "candles" / file)
    return f.select(pl.lit(name).alias("instrument"), pl.col("time").cast(TIME), pl.exclude("time"), pl.lit(True).alias("complete"))


def every(candles, minutes=16):
    return candles.select("instrument", "time", asof=pl.col("time").dt.offset_by("1m").cast(TIME)).gather_every(minutes)


def test_friday_gates_whose_exit_falls_into_the_weekend_are_dropped_as_closure():
    week = pl.concat([bars("2025-11-07T20:00Z", [1.1] * 120), bars("2025-11-09T22:00Z", [1.2] * 120)])
    fr = forward_returns(gates("2025-11-07T20:30Z", "2025-11-07T21:50Z", "2025-11-07T22:00Z", "2025-11-09T22:00Z"), week, (5, 15, 240))
    assert [[DROP_REASONS[c] for c in r] for r in fr.drop] == [["", "", "closure"], ["", "closure", "closure"], ["closure"] * 3, ["", "", "data_end"]]
    assert np.nanmax(np.abs(fr.mid_bp)) < 1e-6  # the weekend's jump of 900 bp is in no return


def test_without_a_closure_in_the_calendar_the_same_gates_are_stale_or_carried_nowhere():
    week = pl.concat([bars("2025-11-07T20:00Z", [1.1] * 120), bars("2025-11-09T22:00Z", [1.2] * 120)])
    fr = forward_returns(gates("2025-11-07T21:50Z"), week, (15,), calendar=TradingCalendar())
    assert DROP_REASONS[fr.drop[0, 0]] == "stale_exit"


def test_a_span_over_a_daily_break_is_kept_and_flagged():
    gold = pl.concat([bars("2025-11-04T20:00Z", [4000.0] * 120, "XAU_USD"), bars("2025-11-04T23:00Z", [4004.0] * 240, "XAU_USD")])
    fr = forward_returns(gates("2025-11-04T21:00Z", "2025-11-04T20:00Z", name="XAU_USD"), gold, (30, 90, 240), cost="none")
    assert [[DROP_REASONS[c] for c in r] for r in fr.drop] == [["", "", ""], ["", "closure", ""]]
    assert fr.gap.tolist() == [[False, False, True], [False, False, True]]


def test_the_staleness_limit_is_two_minutes_or_a_twentieth():
    for late, h, ok in ((2, 5, True), (3, 5, False), (3, 60, True), (4, 60, False), (12, 240, True), (13, 240, False)):
        c = pl.concat([bars("2025-11-04T08:00Z", [1.1] * 10), bars("2025-11-04T08:12Z", [1.1] * 400).slice(late - 2)])
        fr = forward_returns(gates("2025-11-04T08:10Z"), c, (h,))
        assert DROP_REASONS[fr.drop[0, 0]] == ("" if ok else "stale_entry"), (late, h)


def test_the_entry_uses_the_first_bar_at_asof_and_never_the_gates_own_bar():
    c = bars("2025-11-04T09:00Z", [1.0, 1.1, 1.1, 1.1, 1.21])
    fr = forward_returns(gates("2025-11-04T09:01Z"), c, (3,), cost="none")
    assert fr.mid_bp[0, 0] == pytest.approx(1e4 * (1.21005 / 1.10005 - 1)) and fr.entry_price[0] == pytest.approx(1.10005)


@pytest.mark.parametrize("at", ["entry", "exit"])
def test_a_crossed_bar_gives_no_free_profit(at):
    c = bars("2025-11-04T09:00Z", [1.1] * 10)
    k = 0 if at == "entry" else 5
    c = c.with_columns(pl.when(pl.int_range(pl.len()) == k).then(pl.col("bid_open") - 0.002).otherwise("ask_open").alias("ask_open"))
    fr = forward_returns(gates("2025-11-04T09:00Z"), c, (5,))
    assert fr.long_bp[0, 0] <= 0 and fr.short_bp[0, 0] <= 0 and fr.cost_bp[0, 0] > 0


def test_quoted_returns_need_no_mid_and_mid_returns_no_quotes():
    c = bars("2025-11-04T09:00Z", np.linspace(1.1, 1.101, 20))
    g = gates("2025-11-04T09:02Z", "2025-11-04T09:09Z")
    a = forward_returns(g, c, (5,))
    b = forward_returns(g, c.with_columns(open=None, high=None, low=None).cast({"open": pl.Float64, "high": pl.Float64, "low": pl.Float64}), (5,))
    np.testing.assert_array_equal(a.long_bp, b.long_bp)
    n = forward_returns(g, c.drop([x for x in c.columns if x.startswith(("bid", "ask"))]), (5,), cost="none")
    np.testing.assert_allclose(n.mid_bp, a.mid_bp)
    np.testing.assert_array_equal(n.long_bp, -n.short_bp)


def test_excursions_can_be_left_out():
    fr = forward_returns(gates("2025-11-04T09:00Z"), bars("2025-11-04T09:00Z", [1.1] * 10), (5,), excursions=False)
    assert fr.mfe_bp.shape == (1, 1) and np.isnan(fr.mfe_bp).all() and np.isfinite(fr.long_bp).all()


def test_more_data_changes_no_sample_that_was_there(tmp_path):
    rng = np.random.default_rng(0)
    c = bars("2025-11-04T09:00Z", 1.1 * np.exp(np.cumsum(rng.normal(0, 1e-4, 600))))
    g = every(c)
    whole = forward_returns(g, c, (5, 60))
    part = forward_returns(g.filter(pl.col("time") < c["time"][300]), c.head(300), (5, 60))
    k, n = part.drop == 0, len(part.gates)
    assert k.sum() > 20
    for f in ("long_bp", "short_bp", "mfe_bp", "mae_bp"):
        np.testing.assert_array_equal(getattr(part, f)[k], getattr(whole, f)[:n][k])
    assert set(np.unique(part.drop[~k])) == {DROP_REASONS.index("data_end")}


# ---- real candles


@pytest.mark.data
def test_oanda_euro_two_weeks(shared_data):
    c = real(shared_data, "oanda_EURUSD_M1_201405.parquet", "EUR_USD")
    fr = forward_returns(every(c), c, (5, 15, 30, 60, 240))
    counts = fr.dropped_counts().group_by("reason").agg(pl.col("count").sum())
    assert set(counts["reason"]) <= set(DROP_REASONS[1:]) and {"closure", "data_end"} <= set(counts["reason"])
    kept = (fr.drop == 0).sum(axis=0)
    assert (kept > 850).all() and (np.diff(kept) <= 0).all()
    assert 0.5 < np.nanmedian(fr.cost_bp) < 1.5  # the median spread is 1.1 pips at 1.38
    assert (fr.long_bp + fr.short_bp)[fr.drop == 0].max() <= 0
    assert np.nanmax(np.abs(fr.mid_bp)) < 120 and not fr.gap.any()


@pytest.mark.data
def test_fxcm_crossed_bars_never_pay(shared_data):
    c = real(shared_data, "fxcm_USDJPY_M1_201302.parquet", "USD_JPY")
    crossed = (c["bid_open"] > c["ask_open"]).sum()
    assert crossed > 500
    fr = forward_returns(every(c, 1), c, (5, 60))
    assert np.nanmax(fr.long_bp + fr.short_bp) <= 1e-9


@pytest.mark.data
def test_perpetual_without_quotes_asks_for_a_cost_and_never_closes(shared_data):
    c = real(shared_data, "perp_BTC-PERP_M1_202201.parquet", "BTC-PERP")
    with pytest.raises(DataError, match=r"spread of BTC-PERP.*fallback_spread_bp"):
        forward_returns(every(c), c)
    fr = forward_returns(every(c), c, cost=cost_model("quoted", fallback_spread_bp=1.0))
    assert fr.costs_used()["BTC-PERP"]["source"] == "fallback_spread_bp"
    np.testing.assert_allclose(fr.cost_bp[fr.drop == 0], 1.5)
    assert set(fr.dropped_counts()["reason"]) == {"data_end"}


@pytest.mark.data
def test_gold_daily_break(shared_data):
    c = real(shared_data, "oanda_XAUUSD_M1_201405.parquet", "XAU_USD")
    fr = forward_returns(every(c), c, (5, 240))
    reasons = dict(fr.dropped_counts().filter(pl.col("horizon_min") == 240).select("reason", "count").iter_rows())
    assert reasons["closure"] > 50 and fr.gap[:, 1].any() and not fr.gap[:, 0].any()


# ---- bad input


def test_bad_input_is_named():
    c, g = bars("2025-11-04T09:00Z", [1.1] * 10), gates("2025-11-04T09:00Z")
    for hs in ((), (0,), (5, 5), (15, 5), (2.5,)):
        with pytest.raises(BadInput, match="rising order"):
            forward_returns(g, c, hs)
    with pytest.raises(BadInput, match="no column asof"):
        forward_returns(g.drop("asof"), c)
    with pytest.raises(NotFound, match=r"USD_JPY.*EUR_USD"):
        forward_returns(gates("2025-11-04T09:00Z", name="USD_JPY"), c)
    with pytest.raises(DataError, match="time order"):
        forward_returns(g, c.reverse())
    with pytest.raises(DataError, match="time order or hold one time twice"):
        forward_returns(g, pl.concat([c, c.tail(1)]))
    with pytest.raises(DataError, match="not sorted by instrument"):
        forward_returns(g, pl.concat([c, c.with_columns(instrument=pl.lit("USD_JPY")), c]))
    with pytest.raises(BadInput, match="side"):
        forward_returns(g, c, (5,)).net_bp("both")
    with pytest.raises(BadInput, match="7 min was not computed"):
        forward_returns(g, c, (5,)).column(7)


def test_no_gates_and_no_usable_bars():
    c, g = bars("2025-11-04T09:00Z", [1.1] * 10), gates("2025-11-04T09:00Z")
    empty = forward_returns(g.clear(), c)
    assert empty.long_bp.shape == (0, 5) and empty.dropped_counts().is_empty() and empty.instruments == ()
    nothing = forward_returns(g, c.with_columns(pl.lit(float("nan")).alias(x) for x in ("open", "high", "low", "close")), (5,), cost="none")
    assert DROP_REASONS[nothing.drop[0, 0]] == "data_end" and nothing.entry_ms[0] == -1


def test_incomplete_bars_do_not_count():
    c = bars("2025-11-04T09:00Z", [1.1] * 10)
    fr = forward_returns(gates("2025-11-04T09:00Z"), c.with_columns(complete=pl.int_range(pl.len()) < 5), (5,))
    assert DROP_REASONS[fr.drop[0, 0]] == "data_end"


def test_the_clock_change_moves_the_close():
    """New York closes at 22:00 UTC in winter and 21:00 UTC in summer."""
    for day, hour in (("2025-10-31", 21), ("2025-11-07", 22)):
        c = bars(f"{day}T19:00Z", [1.1] * 300)
        fr = forward_returns(gates(f"{day}T{hour - 1}:54Z", f"{day}T{hour - 1}:55Z"), c, (5,))
        assert [DROP_REASONS[x] for x in fr.drop[:, 0]] == ["", "closure"]
    assert calendar_for("EUR_USD").is_open(gates("2025-11-07T21:59Z")["asof"]).all()
