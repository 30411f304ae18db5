"""Compat windows per second: the kernel, its plain numpy twin, and the sliding spectrum against a transform per window.

    python benchmarks/bench_gates_compat.py [--quick] [--json]

One thread. Medians of repeats, all in this run; kernels are compiled before the clock starts. Every metric of every stride-1
window of 64 candles is computed, and the results of kernel and twin are compared before anything is printed.
"""
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(name, "1")

import argparse
import json
import statistics
import time

import numpy as np

from deskbook.gates import compat
from deskbook.gates.codec import CodecInput
from deskbook.gates.compat import compat_windows, plain_windows, spectral_plan
from deskbook.gates.hazard import HazardCalibrator, ReferenceCalibrator, calibrate
from deskbook.gates.settings import GateSettings


def history(n, seed=7):
    "A random walk at EUR/USD scale, five decimals, with tick volume."
    rng = np.random.default_rng(seed)
    c = np.round(1.15 * np.exp(5e-5 * rng.standard_normal(n).cumsum()), 5)
    o = np.r_[c[:1], c[:-1]]
    room = np.round(5e-5 * rng.random((2, n)), 5)
    return CodecInput(np.arange(n) * 60_000, o, np.maximum(o, c) + room[0], np.minimum(o, c) - room[1], c, np.floor(rng.gamma(2, 50, n)), np.round(rng.gamma(9, 1e-5, n), 5))


def median_seconds(work, repeats):
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def fourier_low_power(codes, window):
    "The baseline: one real transform per window, in blocks that fit the cache."
    out = np.empty(len(codes) - window + 1)
    rows = np.lib.stride_tricks.sliding_window_view(codes, window)
    for k in range(0, len(out), 512):
        bits = np.unpackbits(rows[k:k + 512].copy(), axis=1)
        out[k:k + 512] = (np.abs(np.fft.rfft(bits)[:, 1:window + 1])**2).sum(1)
    return out


def sliding_low_power(codes, window):
    plan, out = spectral_plan(8 * window), np.empty(len(codes) - window + 1)
    compat._low_power(codes, window, 1, plan.room, plan.table, plan.cos, plan.sin, out)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the candles, fewer repeats")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    n, n_plain, repeats = (100_000, 5_000, 5) if args.quick else (1_000_000, 20_000, 7)
    s, x = GateSettings(mode="compat", stride=1), history(n)
    few = CodecInput(*(getattr(x, name)[:n_plain] for name in ("time_ms", "open", "high", "low", "close", "volume", "spread")))
    fast, plain = compat_windows(few, s), plain_windows(few, s)
    for name, values in plain.values.items():
        np.testing.assert_allclose(fast.values[name], values, rtol=1e-9, atol=1.0001e-6 if name == "spectral_lowf_share" else 1e-13, err_msg=name)
    codes = compat_windows(x, s).codes
    np.testing.assert_allclose(sliding_low_power(codes[:n_plain], 64), fourier_low_power(codes[:n_plain], 64), rtol=1e-10)
    hazards = compat_windows(x, GateSettings(mode="compat")).values["rupture"]
    windows, windows_plain = n - 63, n_plain - 63
    rate = {"kernel_windows_per_s": windows / median_seconds(lambda: compat_windows(x, s), repeats),
            "plain_windows_per_s": windows_plain / median_seconds(lambda: plain_windows(few, s), 3),
            "sliding_spectra_per_s": windows / median_seconds(lambda: sliding_low_power(codes, 64), repeats),
            "rfft_spectra_per_s": windows_plain / median_seconds(lambda: fourier_low_power(codes[:n_plain], 64), 3),
            "stride16_candles_per_s": n / median_seconds(lambda: compat_windows(x, GateSettings(mode="compat")), repeats),
            "old_rule_hazards_per_s": len(hazards) / median_seconds(lambda: calibrate(hazards, ReferenceCalibrator()), 3),
            "prior_rule_hazards_per_s": len(hazards) / median_seconds(lambda: calibrate(hazards, HazardCalibrator()), 3)}
    ratio = {"kernel_over_plain": rate["kernel_windows_per_s"] / rate["plain_windows_per_s"], "sliding_over_rfft": rate["sliding_spectra_per_s"] / rate["rfft_spectra_per_s"]}
    if args.json:
        print(json.dumps({"candles": n, **{k: round(v, 1) for k, v in (rate | ratio).items()}}))
        return
    print(f"compat windows, {n:,} candles, stride 1, window 64, every metric, one thread, median of {repeats}")
    print(f"  kernel            {rate['kernel_windows_per_s']:>12,.0f} windows/s   (target 400,000)")
    print(f"  plain numpy twin  {rate['plain_windows_per_s']:>12,.0f} windows/s   kernel is {ratio['kernel_over_plain']:.0f} x as fast")
    print(f"  sliding spectrum  {rate['sliding_spectra_per_s']:>12,.0f} spectra/s   {ratio['sliding_over_rfft']:.1f} x numpy.fft.rfft per window ({rate['rfft_spectra_per_s']:,.0f}/s)")
    print(f"  stride 16         {rate['stride16_candles_per_s']:>12,.0f} candles/s")
    print(f"  thresholds        {rate['old_rule_hazards_per_s']:>12,.0f} hazards/s old rule, {rate['prior_rule_hazards_per_s']:,.0f} prior samples only")


if __name__ == "__main__":
    main()
