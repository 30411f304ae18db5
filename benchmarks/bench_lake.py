"""The lake and the simulated market, beside the plainest way to do the same with pandas.

    python benchmarks/bench_lake.py [--quick]

Baselines, measured in the same run on the same rows: cleaning row rules with pandas masks, `pandas.to_parquet` of one big file
and reading a week back from it with pandas, and a calendar that asks `zoneinfo` minute by minute.
"""
import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl

from deskbook.market.calendar import calendar_for
from deskbook.market.candles import clean_candles
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake


def median_s(f, repeats=5):
    out = []
    for _ in range(repeats):
        t = time.perf_counter()
        f()
        out.append(time.perf_counter() - t)
    return statistics.median(out)


def pandas_clean(df):
    p = df[["open", "high", "low", "close"]]
    ok = np.isfinite(p).all(axis=1) & (p > 0).all(axis=1) & (df.high >= df[["open", "close"]].max(axis=1)) & (df.low <= df[["open", "close"]].min(axis=1))
    return df[ok].drop_duplicates(["instrument", "time"], keep="last").sort_values(["instrument", "time"])


def plain_open(times_ms):
    zone = ZoneInfo("America/New_York")
    out = np.empty(len(times_ms), dtype=bool)
    for i, t in enumerate(times_ms):
        d = datetime.fromtimestamp(t / 1000, UTC).astimezone(zone)
        m = d.weekday() * 1440 + d.hour * 60 + d.minute
        out[i] = not 4 * 1440 + 1020 <= m < 6 * 1440 + 1020
    return out


def line(what, ours, base, unit=""):
    print(f"{what:<46} {ours * 1e3:10.1f} ms   baseline {base * 1e3:10.1f} ms   {base / ours:7.1f} x {unit}")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--quick", action="store_true", help="one pair, one year")
    quick = ap.parse_args().quick
    pairs = ["EUR_USD"] if quick else ["EUR_USD", "GBP_USD", "USD_JPY"]
    start, end = ("2024-01-01", "2025-01-01") if quick else ("2023-01-01", "2025-01-01")

    t = time.perf_counter()
    candles = simulate_candles(pairs, start, end)
    made = time.perf_counter() - t
    print(f"simulated {candles.height:,} candles in {made:.2f} s: {candles.height / made:,.0f} candles/s")

    frame = candles.to_pandas()
    line("clean", median_s(lambda: clean_candles(candles)), median_s(lambda: pandas_clean(frame), 3), "faster than pandas masks")

    ms = candles["time"].dt.epoch("ms").to_numpy()[:200_000]
    cal = calendar_for("EUR_USD")
    assert np.array_equal(cal.is_open(ms[:5000]), plain_open(ms[:5000]))
    line("calendar, 200,000 times", median_s(lambda: cal.is_open(ms)), median_s(lambda: plain_open(ms[:20_000]), 3) * 10, "faster than zoneinfo per minute")

    with tempfile.TemporaryDirectory() as d:
        lake, single = Lake(Path(d) / "lake"), Path(d) / "single.parquet"
        t = time.perf_counter()
        lake.write_candles(candles, "simulated")
        first = time.perf_counter() - t
        line("write, merged by month", first, median_s(lambda: frame.to_parquet(single, compression="zstd"), 3), "(baseline: one file, no merge)")
        line("write again, nothing new", median_s(lambda: lake.write_candles(candles, "simulated"), 3), first, "faster than the first write")
        minute = candles.filter(pl.col("instrument") == pairs[0]).tail(1).with_columns(close=pl.col("open"), high=pl.col("open"), low=pl.col("open"))
        flip = [minute, candles.filter(pl.col("instrument") == pairs[0]).tail(1)] * 20
        print(f"{'append one candle to a month':<46} {median_s(lambda: lake.write_candles(flip.pop(), 'simulated'), 9) * 1e3:10.1f} ms")
        a, b = pd.Timestamp("2024-06-03", tz="UTC"), pd.Timestamp("2024-06-10", tz="UTC")

        def naive():
            df = pd.read_parquet(single)
            return df[(df.time >= a) & (df.time < b)]

        week = lake.candles(start="2024-06-03", end="2024-06-10")
        assert len(naive()) == week.height
        line("read a week", median_s(lambda: lake.candles(start="2024-06-03", end="2024-06-10")), median_s(naive, 3), "faster than pandas from one file")
        line("read everything", median_s(lake.candles, 3), median_s(lambda: pd.read_parquet(single), 3))
        line("inventory", median_s(lake.inventory), median_s(lambda: pd.read_parquet(single, columns=["instrument", "time"]).groupby("instrument").time.agg(["count", "min", "max"]), 3),
            f"({len(lake.partitions('candles'))} files)")
        size = sum(f.stat().st_size for f in Path(d, "lake").rglob("*.parquet"))
        print(f"lake: {size / 1e6:.1f} MB, {size / candles.height:.1f} bytes per candle")


if __name__ == "__main__":
    main()
