"""Forward returns against a slow twin in plain Python, on random markets with holes, closures, crossed bars and missing quotes."""
import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from deskbook.market.calendar import TradingCalendar
from deskbook.studies.costs import cost_model
from deskbook.studies.forward import DROP_REASONS, forward_returns
from hypothesis import given, settings
from hypothesis import strategies as st

T0 = int(datetime(2025, 11, 7, 19, 0, tzinfo=UTC).timestamp() * 1000)  # Friday, three hours before the close
MIN = 60_000
QUOTES = [f"{s}_{x}" for s in ("bid", "ask") for x in ("open", "high", "low", "close")]


def frame(bars, name="EUR_USD"):
    """bars: list of dicts with minute, price fields."""
    cols = {c: [b.get(c) for b in bars] for c in ("open", "high", "low", "close", *QUOTES)}
    return pl.DataFrame(
        {"instrument": [name] * len(bars), "time": pl.Series([T0 + b["minute"] * MIN for b in bars], dtype=pl.Int64).cast(pl.Datetime("ms", "UTC"))}
        | {k: pl.Series(v, dtype=pl.Float64) for k, v in cols.items()} | {"complete": [True] * len(bars)})


def gate_frame(minutes, name="EUR_USD"):
    asof = pl.Series([T0 + m * MIN for m in minutes], dtype=pl.Int64).cast(pl.Datetime("ms", "UTC"))
    return pl.DataFrame({"instrument": [name] * len(minutes), "time": asof.dt.offset_by("-1m"), "asof": asof, "tag": list(range(len(minutes)))})


def known(x):
    return x is not None and math.isfinite(x)


def twin(bars, minute, h, is_open, quoted, charge_price):
    """One gate at one horizon: (drop, long, short, mid, mfe, mae)."""
    def sides(b):
        if not quoted:
            return b["open"], b["open"], b["open"]
        return min(b["bid_open"], b["ask_open"]), max(b["bid_open"], b["ask_open"]), (b["bid_open"] + b["ask_open"]) / 2

    usable = [b for b in bars if not quoted or (known(b["bid_open"]) and known(b["ask_open"]))]
    limit = max(2.0, 0.05 * h)
    if not is_open(minute):
        return "closure", *[math.nan] * 5
    later = [b for b in usable if b["minute"] >= minute]
    if not later:
        return "data_end", *[math.nan] * 5
    entry = later[0]
    if entry["minute"] - minute > limit:
        return "stale_entry", *[math.nan] * 5
    due = entry["minute"] + h
    if not is_open(due):
        return "closure", *[math.nan] * 5
    after = [b for b in usable if b["minute"] >= due]
    if not after:
        return "data_end", *[math.nan] * 5
    out = after[0]
    if out["minute"] - due > limit:
        return "stale_exit", *[math.nan] * 5
    sell0, buy0, mid0 = sides(entry)
    sell1, buy1, mid1 = sides(out)
    charge = charge_price / mid0
    held = [b for b in usable if entry["minute"] <= b["minute"] < out["minute"]]

    def best(b, x):
        got = [b[f"bid_{x}"], b[f"ask_{x}"]] if quoted else [b[x]]
        got = [v for v in got if known(v)]
        return min(got) if got else sides(b)[0]

    top = max([best(b, "high") for b in held] + [sell1])
    low = min([best(b, "low") for b in held] + [sell1])
    return ("", 1e4 * (sell1 / buy0 - 1 - charge), 1e4 * (1 - buy1 / sell0 - charge), 1e4 * (mid1 / mid0 - 1),
            1e4 * (top / buy0 - 1 - charge), 1e4 * (low / buy0 - 1 - charge))


@st.composite
def markets(draw):
    """Up to 90 minutes with holes, crossed bars and missing quotes; gates in and around them; perhaps a closure of seven minutes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    holes, missing = draw(st.sampled_from([0.0, 0.1, 0.5])), draw(st.sampled_from([0.0, 0.05, 0.4]))
    bars = []
    for m in np.flatnonzero(rng.random(draw(st.integers(1, 90))) >= holes).tolist() or [0]:
        o = 1.1 + rng.integers(-100, 100) / 1e4
        b = {"minute": m, "open": o, "high": o + rng.integers(0, 10) / 1e4, "low": o - rng.integers(0, 10) / 1e4, "close": o}
        spread = rng.integers(-2, 7) / 1e4  # negative: crossed
        for x in ("open", "high", "low", "close"):
            b[f"bid_{x}"], b[f"ask_{x}"] = b[x] - spread / 2, b[x] + spread / 2
        if rng.random() < missing:
            b[QUOTES[rng.integers(8)]] = (None, math.nan)[rng.integers(2)]
        bars.append(b)
    gates = draw(st.lists(st.integers(-5, 95), max_size=25))
    return bars, gates, draw(st.none() | st.integers(0, 90))


@settings(max_examples=150, deadline=None)
@given(markets(), st.sampled_from(["quoted", "none", "median_spread_plus_half_slip"]), st.sampled_from([(1,), (5, 15, 60), (3, 50)]))
def test_equals_the_slow_twin(market, kind, horizons):
    bars, minutes, break_at = market
    shut = () if break_at is None else ((T0 + break_at * MIN, T0 + (break_at + 7) * MIN),)
    cal = TradingCalendar(closures=shut)
    candles, gates = frame(bars), gate_frame(minutes)
    quotes = np.mean([known(b["bid_open"]) and known(b["ask_open"]) for b in bars]) >= 0.5
    model = cost_model(kind, spreads={"EUR_USD": 0.0002})
    fr = forward_returns(gates, candles, horizons, cost=model, calendar=cal)
    quoted = kind == "quoted" and quotes
    charge = 0.0 if kind == "none" else (0.0 if quoted else 0.0002 * 1.5 + (0.1e-4 if kind.startswith("median") else 0.0))

    def is_open(m):
        return break_at is None or not break_at <= m < break_at + 7

    for row, minute in enumerate(fr.gates["asof"].dt.epoch("ms").to_list()):
        for k, h in enumerate(horizons):
            want = twin(bars, (minute - T0) // MIN, h, is_open, quoted, charge)
            got = [DROP_REASONS[fr.drop[row, k]], *(getattr(fr, f)[row, k] for f in ("long_bp", "short_bp", "mid_bp", "mfe_bp", "mae_bp"))]
            assert got[0] == want[0]
            np.testing.assert_allclose(got[1:], want[1:], rtol=0, atol=1e-8, equal_nan=True)
    assert fr.dropped_counts()["count"].sum() == np.count_nonzero(fr.drop)
    kept = fr.drop == 0
    assert (fr.mae_bp[kept] <= fr.long_bp[kept] + 1e-9).all() and (fr.long_bp[kept] <= fr.mfe_bp[kept] + 1e-9).all()
    assert np.isfinite(fr.long_bp[kept]).all() and np.isnan(fr.long_bp[~kept]).all()
    assert (fr.long_bp[kept] + fr.short_bp[kept] <= 1e-9).all()  # nobody earns on both sides: no free profit from crossed bars


@settings(max_examples=60, deadline=None)
@given(markets(), st.randoms(use_true_random=False))
def test_bars_after_the_exit_change_nothing(market, rnd):
    """Mutate everything later than the last exit of one gate: its row stays bit for bit."""
    bars, minutes, _ = market
    h, stale = 15, 2
    gates = gate_frame(minutes)
    cal = TradingCalendar()
    cost = cost_model("quoted", spreads={"EUR_USD": 0.0002})
    if np.mean([known(b["bid_open"]) and known(b["ask_open"]) for b in bars]) < 0.6:
        return
    before = forward_returns(gates, frame(bars), (h,), cost=cost, calendar=cal)
    for row in range(len(minutes)):
        if before.drop[row, 0]:
            continue
        end = (before.entry_ms[row] - T0) // MIN + h + stale
        later = [dict(b) for b in bars]
        for b in later:
            if b["minute"] > end:
                for c in ("open", "high", "low", "close", *QUOTES):
                    b[c] = None if b[c] is None else b[c] * rnd.uniform(0.5, 2)
        after = forward_returns(gates, frame(later), (h,), cost=cost, calendar=cal)
        for f in ("long_bp", "short_bp", "mid_bp", "mfe_bp", "mae_bp"):
            assert getattr(after, f)[row, 0] == getattr(before, f)[row, 0]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_row_order_and_other_instruments_do_not_matter(threads):
    rng = np.random.default_rng(3)
    parts, gates = [], []
    for name in ("AUD_USD", "EUR_USD", "GBP_USD"):
        p = np.exp(np.cumsum(rng.normal(0, 1e-4, 300)))
        parts.append(frame([{"minute": i, **dict.fromkeys(("open", "close", "bid_open", "bid_close"), x), "high": x * 1.0001, "low": x * 0.9999,
            "bid_high": x * 1.0001, "bid_low": x * 0.9999, "ask_open": x + 1e-4, "ask_close": x + 1e-4, "ask_high": x * 1.0002, "ask_low": x}
            for i, x in enumerate(p)], name))
        gates.append(gate_frame(range(10, 290, 7), name))
    both = forward_returns(pl.concat(gates).sample(fraction=1, shuffle=True, seed=1), pl.concat(parts), (5, 60), threads=threads)
    for c, g in zip(parts, gates):
        one = forward_returns(g, c, (5, 60), threads=0)
        rows = both.rows[g["instrument"][0]]
        assert both.gates[rows].equals(one.gates)
        for f in ("long_bp", "short_bp", "mid_bp", "mfe_bp", "mae_bp", "drop", "cost_bp"):
            np.testing.assert_array_equal(getattr(both, f)[rows], getattr(one, f))
