"""A market with something to find: for rigs whose desks shall admit gates and trade."""
import numpy as np
import polars as pl

MINUTE_MS = 60_000


def persistent_candles(pairs, start_ms, minutes, seed=1):
    """M1 candles of these pairs whose returns are an AR(1) with 0.5, about 1 bp a minute."""
    chance, times, frames = np.random.default_rng(seed), np.arange(minutes, dtype=np.int64) * MINUTE_MS + start_ms, []
    for name in pairs:
        returns = np.zeros(minutes)
        for i, shock in enumerate(chance.normal(0, 1e-4, minutes)):
            returns[i] = 0.5 * returns[i - 1] + shock
        # a path that comes back, so that a day does not end far from where it began
        close = (150.0 if "JPY" in name else 1.1) * np.exp(np.cumsum(returns) - np.linspace(0, returns.sum(), minutes))
        opened = np.r_[close[0], close[:-1]]
        frames.append(pl.DataFrame({"instrument": name, "time": times, "open": opened, "high": np.maximum(opened, close) * 1.00002,
                                    "low": np.minimum(opened, close) * 0.99998, "close": close, "volume": 60.0}))
    return pl.concat(frames).with_columns(pl.col("time").cast(pl.Datetime("ms", "UTC")))
