"""Forward returns and decile tables with a gate on every bar, beside a naive pandas version in the same run.

    python benchmarks/bench_forward.py            # 7 instruments x 90 days of M1: 907,200 rows, 5 horizons
    python benchmarks/bench_forward.py --quick    # 7 instruments x 10 days

Each side runs in processes of its own, so that the peak memory is its own. Time excludes imports, reading the file and compiling;
the compiled kernels are cached, and a cold first call is shown apart. Both sides read the quote columns and no others, and must agree on every decile.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HORIZONS = (5, 15, 30, 60, 240)
NAMES = ("AUD_USD", "EUR_USD", "GBP_USD", "NZD_USD", "USD_CAD", "USD_CHF", "USD_JPY")
TARGET_S, TARGET_MB = 1.2, 500


def make(path, days):
    """A market that never closes: a random walk with a spread, one file for both sides."""
    import numpy as np
    import polars as pl
    n, rng, parts = days * 1440, np.random.default_rng(0), []
    t = pl.Series("time", 1762128000000 + 60_000 * np.arange(n)).cast(pl.Datetime("ms", "UTC"))
    for name in NAMES:
        close = np.exp(np.cumsum(rng.normal(0, 1e-4, n)))
        o = np.concatenate([[1.0], close[:-1]])
        wick = np.abs(rng.normal(0, 5e-5, (2, n)))
        mid = {"open": o, "high": np.maximum(o, close) + wick[0], "low": np.minimum(o, close) - wick[1], "close": close}
        quotes = {f"{s}_{x}": v + d for s, d in (("bid", -5e-5), ("ask", 5e-5)) for x, v in mid.items()}
        parts.append(pl.DataFrame({"instrument": name, "time": t, **mid, **quotes, "hazard": rng.random(n)}))
    pl.concat(parts, rechunk=True).write_parquet(path, compression="uncompressed", row_group_size=n)


def ours(path, excursions):
    import polars as pl
    from deskbook.market.calendar import TradingCalendar
    from deskbook.studies.deciles import decile_tables
    from deskbook.studies.forward import forward_returns
    cal = TradingCalendar()
    candles = pl.read_parquet(path, columns=["instrument", "time", "hazard", *[f"{s}_{x}" for s in ("bid", "ask") for x in ("open", "high", "low", "close")]])
    gates = candles.select("instrument", "time", asof=pl.col("time") + pl.duration(minutes=1), hazard="hazard")
    candles = candles.drop("hazard")

    def work(c, g):
        fr = forward_returns(g, c, HORIZONS, cost="quoted", calendar=cal, excursions=excursions)
        return fr, decile_tables(fr)

    t0 = time.perf_counter()
    work(candles.head(2000), gates.head(2000))
    first = time.perf_counter() - t0
    t0, c0 = time.perf_counter(), time.process_time()
    _, table = work(candles, gates)
    took = time.perf_counter() - t0, time.process_time() - c0
    return took, first, {f"{i}/{h}/{d}": (n, m) for i, h, d, n, m in table.select("instrument", "horizon_min", "decile", "count", "mean_bp").iter_rows()}


def naive(path, excursions):
    """What one writes in an afternoon: a time-keyed merge per horizon, rolling extremes, a rank and a groupby."""
    import numpy as np
    import warnings
    import pandas as pd
    warnings.simplefilter("ignore", DeprecationWarning)
    frame = pd.read_parquet(path, columns=["instrument", "time", "hazard", *[f"{s}_{x}" for s in ("bid", "ask") for x in ("open", "high", "low", "close")]])
    t0, c0, out = time.perf_counter(), time.process_time(), {}
    for name, c in frame.groupby("instrument"):
        c = c.reset_index(drop=True)
        g = pd.DataFrame({"asof": c["time"] + pd.Timedelta("1min"), "hazard": c["hazard"]})
        quote = c[["time", "bid_open", "ask_open"]]
        g = g.merge(quote, left_on="asof", right_on="time", how="left")
        for h in HORIZONS:
            x = g.assign(due=g["asof"] + pd.Timedelta(minutes=h)).merge(quote, left_on="due", right_on="time", how="left", suffixes=("", "_x"))
            x["long_bp"] = 1e4 * (x["bid_open_x"] / x["ask_open"] - 1)
            x["short_bp"] = 1e4 * (1 - x["ask_open_x"] / x["bid_open"])
            x["mid_bp"] = 1e4 * ((x["bid_open_x"] + x["ask_open_x"]) / (x["bid_open"] + x["ask_open"]) - 1)
            if excursions:
                top = c["bid_high"].rolling(h).max().shift(-h)
                low = c["bid_low"].rolling(h).min().shift(-h)
                x["mfe_bp"] = 1e4 * (np.fmax(top, x["bid_open_x"]) / x["ask_open"] - 1)
                x["mae_bp"] = 1e4 * (np.fmin(low, x["bid_open_x"]) / x["ask_open"] - 1)
            x = x.dropna(subset=["long_bp"])
            x["decile"] = (np.floor(10 * (x["hazard"].rank(method="average") - 0.5) / len(x) + 1e-12).clip(0, 9) + 1).astype(int)
            t = x.groupby("decile").agg(count=("long_bp", "size"), mean_bp=("long_bp", "mean"), sd_bp=("long_bp", "std"),
                positive_frac=("long_bp", lambda v: (v > 0).mean()), low=("hazard", "min"), high=("hazard", "max"))
            out |= {f"{name}/{h}/{d}": (int(r["count"]), float(r["mean_bp"])) for d, r in t.iterrows()}
    return (time.perf_counter() - t0, time.process_time() - c0), None, out


def child(side, path, excursions):
    took, first, table = {"deskbook": ours, "pandas": naive}[side](path, excursions)
    print(json.dumps({"s": took[0], "cpu_s": took[1], "first_s": first, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "table": table}))


def run(side, path, excursions, repeats):
    env = os.environ | {"POLARS_MAX_THREADS": "2"}
    args = [sys.executable, __file__, "--child", side, "--path", str(path)] + ([] if excursions else ["--no-excursions"])
    got = [json.loads(subprocess.run(args, check=True, capture_output=True, text=True, env=env).stdout) for _ in range(repeats)]
    return {"s": statistics.median(g["s"] for g in got), "range_s": [min(g["s"] for g in got), max(g["s"] for g in got)],
            "cpu_s": statistics.median(g["cpu_s"] for g in got), "mb": max(g["mb"] for g in got), "first_s": got[0]["first_s"], "table": got[0]["table"]}


def agree(a, b):
    """The largest difference of a decile mean; a missing bin or another count is an error."""
    if a.keys() != b.keys() or any(a[k][0] != b[k][0] for k in a):
        raise SystemExit("the two sides do not have the same bins")
    return max(abs(a[k][1] - b[k][1]) for k in a)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="10 days instead of 90, one repeat")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    p.add_argument("--child", choices=["deskbook", "pandas"], help=argparse.SUPPRESS)
    p.add_argument("--path", help=argparse.SUPPRESS)
    p.add_argument("--no-excursions", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(a.child, a.path, not a.no_excursions)
    days, repeats = (10, 1) if a.quick else (90, 3)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "candles.parquet"
        make(path, days)
        new = {e: run("deskbook", path, e, repeats) for e in (False, True)}
        old = {e: run("pandas", path, e, 1 if a.quick else 2) for e in (False, True)}
    rows = len(NAMES) * days * 1440
    result = {"rows": rows, "horizons": len(HORIZONS), "first_call_s": new[False]["first_s"]}
    for e in (False, True):
        gap = agree(new[e]["table"], old[e]["table"])
        name = "with_excursions" if e else "returns_and_deciles"
        result[name] = {"deskbook_s": new[e]["s"], "deskbook_range_s": new[e]["range_s"], "deskbook_cpu_s": new[e]["cpu_s"], "deskbook_peak_mb": new[e]["mb"],
            "pandas_s": old[e]["s"], "pandas_cpu_s": old[e]["cpu_s"],
            "pandas_peak_mb": old[e]["mb"], "ratio": old[e]["s"] / new[e]["s"], "largest_decile_difference_bp": gap}
    result["targets_met"] = bool(a.quick or (result["returns_and_deciles"]["deskbook_s"] <= TARGET_S and result["returns_and_deciles"]["deskbook_peak_mb"] < TARGET_MB))
    if a.json:
        print(json.dumps(result))
    else:
        print(f"{rows:,} gates, {len(HORIZONS)} horizons, quoted costs; first call (compile or load the cache) {result['first_call_s']:.2f} s")
        for name in ("returns_and_deciles", "with_excursions"):
            r = result[name]
            print(f"{name:>20}: deskbook {r['deskbook_s']:.2f} s ({r['deskbook_cpu_s']:.2f} s CPU), {r['deskbook_peak_mb']:.0f} MB; pandas {r['pandas_s']:.2f} s ({r['pandas_cpu_s']:.2f} s CPU), {r['pandas_peak_mb']:.0f} MB; "
                f"{r['ratio']:.1f} x faster; deciles agree to {r['largest_decile_difference_bp']:.0e} bp")
        print(f"target {TARGET_S} s and {TARGET_MB} MB for returns and deciles: {'met' if result['targets_met'] else 'MISSED'}{' (not judged with --quick)' if a.quick else ''}")
    return 0 if result["targets_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
