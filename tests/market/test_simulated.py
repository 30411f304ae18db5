"""The simulated market: the same however it is cut, valid, without an edge, and with exactly the edge that was planted."""
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.clock import to_ms
from deskbook.core.errors import BadInput, NotFound
from deskbook.market.calendar import calendar_for
from deskbook.market.candles import clean_candles
from deskbook.market.simulated import SIMULATED, SIMULATED_UNIVERSE, PlantedEdge, simulate_candles

A, B = to_ms("2025-10-23T05:17Z"), to_ms("2025-11-05T11:41Z")
NAMES = ("EUR_USD", "XAU_USD", "BTCUSDT-PERP")
WHOLE = {(n, e): simulate_candles([n], A, B, 3, PlantedEdge(4.0, 60) if e else None) for n in NAMES for e in (False, True)}


@given(st.lists(st.integers(A, B), max_size=4), st.sampled_from(NAMES), st.booleans())
@settings(max_examples=12, deadline=None)
def test_any_split_of_the_window_gives_the_same_rows(cuts, name, edge):
    bounds = sorted({A, B, *cuts})
    parts = [simulate_candles([name], a, b, 3, PlantedEdge(4.0, 60) if edge else None) for a, b in pairwise(bounds)]
    assert pl.concat(parts).equals(WHOLE[name, edge])


def test_other_instruments_and_long_windows_change_nothing():
    both = simulate_candles(["USD_JPY", *NAMES], A, B, 3)
    longer = simulate_candles(["EUR_USD"], "2025-06-01", "2025-12-31", 3)
    for n in NAMES:
        assert both.filter(pl.col("instrument") == n).equals(WHOLE[n, False])
    t = pl.col("time").dt.epoch("ms")
    assert longer.filter(t.is_between(A, B, closed="left")).equals(WHOLE["EUR_USD", False])
    assert not simulate_candles(["EUR_USD"], A, B, 4)["close"].equals(WHOLE["EUR_USD", False]["close"])


def test_all_instruments_pass_the_rules_and_keep_their_hours():
    df = simulate_candles(start="2025-10-24", end="2025-11-05")
    assert sorted(df["instrument"].unique()) == sorted(SIMULATED_UNIVERSE)
    out = clean_candles(df)
    assert out.quarantine.is_empty() and not out.blanked and out.candles.equals(df) and not df["crossed"].any()
    for (name,), part in df.partition_by("instrument", as_dict=True).items():
        cal, spec = calendar_for(name), SIMULATED[name]
        assert cal.is_open(part["time"]).all()
        frac = part.height / cal.expected_minutes("2025-10-24", "2025-11-05")
        assert frac == 1.0 if name.endswith("PERP") else 0.9 < frac < 1.0
        for c in ("bid_close", "ask_high"):
            k = part[c].to_numpy() * 10**spec.digits
            assert np.abs(k - np.rint(k)).max() < 1e-4
        assert (part["ask_low"] > part["bid_low"]).all() and (part["volume"] > 0).all()
        assert 0.2 < part["close"][0] / spec.price < 5


def test_the_path_is_continuous_across_days_and_blocks():
    df = simulate_candles(["BTCUSDT-PERP"], "2025-01-01", "2025-06-01")
    t, o, c = df["time"].dt.epoch("ms").to_numpy(), df["open"].to_numpy(), df["close"].to_numpy()
    assert (np.diff(t) == 60_000).all() and np.abs(o[1:] - c[:-1]).max() < 0.101  # one tick: the spread may change


@pytest.mark.parametrize("name", ["EUR_USD", "USD_JPY", "BTCUSDT-PERP"])
def test_nothing_can_be_predicted(name):
    """Over 120 seeds of four days: drift, autocorrelation and reversal of hourly and minute returns are zero within four standard errors."""
    stats = []
    for seed in range(120):
        x = np.log(simulate_candles([name], "2025-09-01", "2025-09-05", seed)["close"].to_numpy())
        r1, r60 = np.diff(x), x[60::60] - x[:-60:60]
        stats.append((r1.mean() * 1e4, np.corrcoef(r1[1:], r1[:-1])[0, 1], np.corrcoef(r60[1:], r60[:-1])[0, 1], np.corrcoef(r1[1:], np.abs(r1[:-1]))[0, 1]))
    s = np.array(stats)
    z = s.mean(axis=0) / (s.std(axis=0) / np.sqrt(len(s)))
    assert np.abs(z).max() < 4, z


def test_returns_have_fat_tails_and_clustered_volatility():
    r = np.diff(np.log(simulate_candles(["EUR_USD"], "2025-01-01", "2025-07-01")["close"].to_numpy()))
    assert 0.8 < r.std() * 1e4 < 2.0
    assert ((r / r.std()) ** 4).mean() > 5
    assert np.corrcoef(np.abs(r[60:]), np.abs(r[:-60]))[0, 1] > 0.1


def test_spread_widens_at_rollover_and_london_is_busier_than_night():
    df = simulate_candles(["EUR_USD"], "2025-07-01", "2025-08-01").with_columns(h=pl.col("time").dt.hour(), s=pl.col("ask_close") - pl.col("bid_close"),
        m=(pl.col("close") / pl.col("open")).log().abs())
    by = {h: g for (h,), g in df.partition_by("h", as_dict=True).items()}
    assert by[21]["s"].median() > 1.5 * by[14]["s"].median()
    assert by[13]["m"].mean() > 1.8 * by[22]["m"].mean()
    assert by[21].height < 0.85 * by[14].height  # minutes without a tick


def test_pairs_share_the_dollar():
    df = simulate_candles(["EUR_USD", "GBP_USD", "USD_CHF"], "2025-07-01", "2025-08-01").with_columns(r=(pl.col("close") / pl.col("open")).log())
    w = df.pivot(on="instrument", index="time", values="r").drop_nulls().select("EUR_USD", "GBP_USD", "USD_CHF").to_numpy()
    rho = np.corrcoef(w.T)
    assert rho[0, 1] > 0.4 and rho[0, 2] < -0.4


@pytest.mark.parametrize(("name", "edge"), [("EUR_USD", 2.0), ("EUR_USD", -3.0), ("BTCUSDT-PERP", 5.0)])
def test_the_planted_edge_is_what_it_says(name, edge):
    """Same noise with and without: the difference of mean forward mid returns over an hour inside sessions is the edge."""
    a, b = (simulate_candles([name], "2025-09-01", "2025-10-01", 0, e).select("time", "close") for e in (None, PlantedEdge(edge, 60)))
    j = a.join(b, on="time", suffix="_e")
    later = j.select(time=pl.col("time").dt.offset_by("-60m"), c1="close", e1="close_e")
    k = j.join(later, on="time")
    t = k["time"].dt.epoch("ms").to_numpy()
    k = k.filter(~pl.Series(calendar_for(name).crosses_closure(t, t + 61 * 60_000)))
    gain = (k["e1"] / k["close_e"] - k["c1"] / k["close"]).mean() * 1e4
    assert gain == pytest.approx(edge, abs=0.02)


def test_an_edge_of_others_changes_nothing():
    assert simulate_candles(["EUR_USD"], A, B, 3, PlantedEdge(9.0, 60, ("USD_JPY",))).equals(WHOLE["EUR_USD", False])


def test_what_it_refuses():
    with pytest.raises(NotFound, match="Did you mean 'EUR_USD'"):
        simulate_candles(["EUR_USS"])
    for kw, words in (({"seed": -1}, "negative"), ({"edge": PlantedEdge(1, 0)}, "no edge"), ({"start": "1970-01-01"}, "1990 to 2100"), ({"start": "2025-11-11"}, "after end")):
        with pytest.raises(BadInput, match=words):
            simulate_candles(["EUR_USD"], **kw)
    assert simulate_candles(["EUR_USD"], "2025-11-08T01:00Z", "2025-11-08T02:00Z").height == 0  # a Saturday
