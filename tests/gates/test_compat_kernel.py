"""The kernel against the plain twin and against definitions written out once more, on inputs nobody chose."""
import math
import statistics
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import DataError
from deskbook.gates import compat
from deskbook.gates.codec import CodecInput, average_true_range, candle_bytes, codec_input, decode_bytes, history_splits, log_returns
from deskbook.gates.compat import COMPAT_COLUMNS, compat_windows, plain_windows, signatures, spectral_plan
from deskbook.gates.settings import GateSettings
from deskbook.gates.structure import METRICS, round6, signature_of, structure_metrics


def history(n, seed=0, price=1.15, step=1e-4, digits=5, volume=True):
    rng = np.random.default_rng(seed)
    c = np.round(price * np.exp(step * rng.standard_normal(n).cumsum()), digits)
    o = np.r_[c[:1], c[:-1]]
    room = np.round(price * step * rng.random((2, n)), digits)
    v = np.floor(rng.gamma(2, 40, n)) * (rng.random(n) > 0.1) if volume else np.zeros(n)
    return CodecInput(np.arange(n) * 60_000, o, np.maximum(o, c) + room[0], np.minimum(o, c) - room[1], c, v, np.round(rng.gamma(4, 3e-5, n), 6))


def agree(fast, plain):
    assert fast.codes.tobytes() == plain.codes.tobytes()
    np.testing.assert_array_equal(fast.regime, plain.regime)
    np.testing.assert_array_equal(fast.ones, plain.ones)
    np.testing.assert_array_equal(fast.walls, plain.walls)
    for name in COMPAT_COLUMNS[:9] + COMPAT_COLUMNS[10:13]:
        np.testing.assert_array_equal(fast.values[name], plain.values[name], err_msg=name)
    np.testing.assert_allclose(fast.values["spectral_lowf_share"], plain.values["spectral_lowf_share"], rtol=0, atol=1.0001e-6)
    for name in COMPAT_COLUMNS[13:]:
        np.testing.assert_allclose(fast.values[name], plain.values[name], rtol=1e-9, atol=1e-15, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 90), st.integers(1, 40), st.integers(1, 30), st.integers(0, 400), st.integers(0, 10**6),
       st.sampled_from([(1.15, 1e-4, 5), (150.0, 2e-4, 3), (1.0, 0.05, 9), (60_000.0, 1e-3, 1), (1.15, 1e-5, 4)]), st.booleans())
def test_kernel_is_the_plain_twin(window, stride, period, n, seed, market, volume):
    x = history(n, seed, *market, volume=volume)
    s = GateSettings(mode="compat", window=window, stride=stride, atr_period=period)
    agree(compat_windows(x, s), plain_windows(x, s))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=8, max_size=60), st.integers(8, 20))
def test_coarse_prices_full_of_ties(levels, window):
    "Equal closes, zero ranges and exact halves in the buckets."
    c = 1.0 + np.array(levels) / 16
    o = np.r_[c[:1], c[:-1]]
    x = CodecInput(np.arange(len(c)) * 60_000, o, np.maximum(o, c), np.minimum(o, c), c, np.array(levels, float), np.maximum(o, c) - np.minimum(o, c))
    s = GateSettings(mode="compat", window=window, stride=1, atr_period=3)
    agree(compat_windows(x, s), plain_windows(x, s))


@pytest.mark.parametrize("window", [255, 256, 257, 301])
def test_long_windows(window):
    x, s = history(700, 3), GateSettings(mode="compat", window=window, stride=7, context=400)
    agree(compat_windows(x, s), plain_windows(x, s))


def literal_metrics(bits):
    "The definitions, one bit at a time."
    n, b = len(bits), [int(v) for v in bits]
    share = sum(b) / n
    entropy = 0.0
    for p in (1.0 - share, share):
        if p > 0:
            entropy -= p * math.log2(p)
    walls = [b[i] != b[i - 1] for i in range(1, n)]
    rupture = sum(walls) / (n - 1)
    tau = {k: sum(b[i] == b[i - k] for i in range(k, n)) / (n - k) for k in (1, 4)}
    half = n // 2
    slope = sum(walls[half:]) / (n - half - 1) - sum(walls[:half - 1]) / (half - 1)
    tau_slope = (tau[4] - tau[1]) / 3
    power = [abs(sum((b[t] - share) * complex(math.cos(2 * math.pi * k * t / n), math.sin(2 * math.pi * k * t / n)) for t in range(n)))**2 for k in range(1, half + 1)]
    lowf = sum(power[:max(1, half // 4)]) / sum(power) if sum(power) > 1e-12 else 0.0
    values = [1 - min(entropy, 1), 1 - rupture, entropy, rupture, rupture, tau[1], tau[4], tau_slope, rupture, slope, lowf,
              rupture / max(1e-6, abs(slope)) if slope else 0.0, math.log(2) / max(1e-6, abs(tau_slope)) if tau_slope else 0.0,
              1 / max(1e-6, abs(slope)) if slope else 0.0, 1.0]
    return dict(zip(METRICS, [round(v, 6) for v in values]))


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=8, max_size=33))
def test_structure_by_definition(codes):
    bits = np.unpackbits(np.frombuffer(codes, np.uint8))
    ours, theirs = structure_metrics(bits), literal_metrics(bits)
    assert {k: float(v) for k, v in ours.items() if k != "spectral_lowf_share"} == {k: v for k, v in theirs.items() if k != "spectral_lowf_share"}
    assert float(ours["spectral_lowf_share"]) == pytest.approx(theirs["spectral_lowf_share"], abs=1.0001e-6)


def test_features_by_definition():
    x = history(80, 9)
    w = compat_windows(x, GateSettings(mode="compat", window=20, stride=11))
    atr, r = average_true_range(x), log_returns(x.close)
    for k, a in enumerate(w.start):
        returns, closes = r[a + 1:a + 20].tolist(), x.close[a:a + 20].tolist()
        mean, mid = statistics.fmean(returns), statistics.fmean(closes)
        slope = sum((i - 9.5) * (c - mid) for i, c in enumerate(closes)) / sum((i - 9.5)**2 for i in range(20))
        d = [v - mean for v in returns]
        expected = {"realized_vol": statistics.pstdev(returns), "atr_mean": statistics.fmean(atr[a:a + 20]),
                    "autocorr": sum(p * q for p, q in pairwise(d)) / sum(p * p for p in d[:-1]),
                    "trend_strength": slope / max(1e-8, statistics.pstdev(closes)),
                    "volume_zscore": (statistics.fmean(x.volume[a:a + 20]) - w.splits.volume) / max(1e-6, w.splits.volume)}
        for name, value in expected.items():
            assert w.values[name][k] == pytest.approx(value, rel=1e-10, abs=1e-16), name


# The sliding spectrum


def low_power(codes, window, stride=1):
    plan, out = spectral_plan(8 * window), np.empty((len(codes) - window) // stride + 1)
    compat._low_power(codes, window, stride, plan.room, plan.table, plan.cos, plan.sin, out)
    return out


@pytest.mark.parametrize("ones", [0.5, 0.03, 0.97])
def test_a_million_bits_without_drift(ones):
    bits = (np.random.default_rng(17).random(1_000_000) < ones).astype(np.uint8)
    codes = np.packbits(bits)
    slid, at = low_power(codes, 64), np.r_[0:200, 60_000:60_200, len(codes) - 64 - 1999:len(codes) - 63]
    rows = np.unpackbits(np.lib.stride_tricks.sliding_window_view(codes, 64)[at].copy(), axis=1)
    fresh = (np.abs(np.fft.rfft(rows)[:, 1:65])**2).sum(1)
    np.testing.assert_allclose(slid[at], fresh, rtol=1e-11, atol=1e-9)


def test_the_sums_are_exact_whatever_came_before():
    "Whole turns of history leave not one bit behind: the same phase gives the same float."
    rng = np.random.default_rng(23)
    tail = rng.integers(0, 256, 64).astype(np.uint8)
    alone = low_power(tail, 64)[-1]
    for turns in (1, 10, 3000):
        assert low_power(np.r_[rng.integers(0, 256, 64 * turns).astype(np.uint8), tail], 64)[-1] == alone


@pytest.mark.parametrize("n_bits", [64, 72, 512, 2048, 2056, 11520])
def test_no_sum_of_factors_can_round(n_bits):
    plan = spectral_plan(n_bits)
    for turn, truth in ((plan.cos, np.cos), (plan.sin, np.sin)):
        units = turn * 2.0**plan.quantum_bits
        assert (units == np.rint(units)).all()
        assert np.abs(turn - truth(2 * np.pi * np.arange(n_bits) / n_bits)).max() <= 2.0**(-plan.quantum_bits - 1) + 2e-16
        for k in range(1, plan.bins + 1, max(1, plan.bins // 50)):
            row = units[np.arange(n_bits) * k % n_bits]
            assert max(row[row > 0].sum(), -row[row < 0].sum()) <= 2.0**53


def test_published_values_do_not_depend_on_the_phase():
    "The same 64 codes at any place of a longer stream have the same metrics, to the last bit."
    rng = np.random.default_rng(31)
    block = rng.integers(0, 256, 64 + 200).astype(np.uint8)
    plan, tables = spectral_plan(512), compat._count_tables(512)

    def published(codes):
        n = len(codes) - 63
        out, low = np.full((19, n), 0.5), np.empty(n)
        compat._low_power(codes, 64, 1, plan.room, plan.table, plan.cos, plan.sin, low)
        compat._metrics(codes, 64, 1, low, plan.room, plan.table, plan.cos, plan.sin, plan.tie_band, tables, out, np.empty(n, np.int8), np.empty((2, n), np.int32))
        return out[:13]

    alone = published(block)
    for lead in (1, 7, 63, 64, 129):
        np.testing.assert_array_equal(published(np.r_[rng.integers(0, 256, lead).astype(np.uint8), block])[:, lead:], alone)


def test_a_share_on_the_edge_is_summed_once_more():
    "A running sum that lands on a half of the seventh decimal is not trusted: the window itself decides."
    codes = np.random.default_rng(41).integers(0, 256, 64).astype(np.uint8)
    plan, b = spectral_plan(512), np.unpackbits(codes).astype(int)
    total = (b.sum() * (512 - b.sum()) + (b[::2].sum() - b[1::2].sum())**2) / 2
    out, true = np.full((19, 1), 0.5), structure_metrics(b)["spectral_lowf_share"]
    on_the_edge = np.array([0.1234565 * total])
    compat._metrics(codes, 64, 1, on_the_edge, plan.room, plan.table, plan.cos, plan.sin, plan.tie_band, compat._count_tables(512), out, np.empty(1, np.int8), np.empty((2, 1), np.int32))
    assert out[9, 0] == float(true)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.floats(-1e6, 1e6), st.integers(-10**7, 10**7).map(lambda k: (k + 0.5) / 1e6), st.fractions(-300, 300, max_denominator=1024).map(float)))
def test_rounding_is_pythons(x):
    assert compat._round6(x) == round(x, 6) == float(round6(np.array([x]))[0])


# Edges


def test_fewer_candles_than_a_window():
    for n in (0, 1, 7, 63):
        w = compat_windows(history(n))
        assert len(w) == 0 and signatures(w).len() == 0 and all(len(v) == 0 for v in w.values.values())
    assert len(compat_windows(history(64))) == 1


def test_constant_tape_has_no_dust():
    for price in (1.15, 0.1, 3.3, 1e-5):
        c = np.full(300, price)
        x = CodecInput(np.arange(300) * 60_000, c, c, c, c, np.full(300, 10.0), np.zeros(300))
        w = compat_windows(x, GateSettings(mode="compat", window=50, stride=1))
        for name in ("realized_vol", "autocorr", "trend_strength", "volume_zscore"):
            assert set(w.values[name]) == {0.0}, name
        assert set(w.codes) == {0b10000011} and set(w.regime) == {2}


def test_missing_and_zero_volume_are_the_same():
    frame = pl.DataFrame({"time": pl.Series(np.arange(100) * 60_000).cast(pl.Datetime("ms", "UTC")), "open": [1.1] * 100, "high": [1.2] * 100, "low": [1.0] * 100,
                          "close": [1.1, 1.15] * 50, "volume": [None] * 100}, schema_overrides={"volume": pl.Float64})
    a, b = (compat_windows(codec_input(f)) for f in (frame, frame.with_columns(volume=0.0)))
    assert a.codes.tobytes() == b.codes.tobytes() and not (a.codes & 1).any()
    assert a.splits.volume == 1e-12
    assert a.values["volume_zscore"].tolist() == pytest.approx([-1e-6] * 3, rel=1e-12)


def test_spread_column_before_quotes_before_range():
    n = 64
    base = pl.DataFrame({"time": pl.Series(np.arange(n) * 60_000).cast(pl.Datetime("ms", "UTC")), "open": [1.1] * n, "high": [1.1004] * n, "low": [1.1] * n, "close": [1.1] * n, "volume": [1.0] * n})
    quoted = base.with_columns(bid_close=pl.lit(1.1), ask_close=pl.Series([1.1001, 1.1002] * (n // 2)))
    column = quoted.with_columns(spread=pl.Series([0.0003, 0.0] * (n // 2)))
    assert codec_input(base).spread[:2].tolist() == pytest.approx([0.0004, 0.0004])
    assert codec_input(quoted).spread[:2].tolist() == pytest.approx([0.0001, 0.0002])
    assert codec_input(column).spread[:2].tolist() == pytest.approx([0.0003, 0.0004])
    crossed = quoted.with_columns(ask_close=pl.lit(1.0999))
    assert codec_input(crossed).spread[0] == pytest.approx(0.0001)


def test_first_candle_takes_its_own_open_but_its_range_its_own_close():
    x = history(64, 5)
    shifted = CodecInput(x.time_ms, np.r_[x.open[:1] - 1, x.open[1:]], x.high, np.r_[x.low[:1] - 1, x.low[1:]], x.close, x.volume, x.spread)
    assert compat_windows(shifted).codes[0] >> 7 == 1
    assert average_true_range(shifted)[0] == pytest.approx(shifted.high[0] - shifted.low[0])


def test_refuses_what_it_would_misread():
    ok = pl.DataFrame({"time": pl.Series([0, 60_000]).cast(pl.Datetime("ms", "UTC")), "open": [1.0, 1.0], "high": [1.0, 1.0], "low": [1.0, 1.0], "close": [1.0, 1.0], "volume": [1.0, 1.0]})
    assert len(codec_input(ok)) == 2
    with pytest.raises(DataError, match="ascending"):
        codec_input(ok.reverse())
    with pytest.raises(DataError, match="ascending"):
        codec_input(pl.concat([ok, ok.tail(1)]))
    for bad in (math.nan, math.inf, None):
        with pytest.raises(DataError, match="finite"):
            codec_input(ok.with_columns(close=pl.Series([1.0, bad])))


def test_signature_table_is_the_signature():
    w = compat_windows(history(3000, 1), GateSettings(mode="compat", stride=1))
    three = zip(w.values["coherence"], w.values["stability"], w.values["entropy"])
    assert signatures(w).to_list() == [signature_of(*v) for v in three]


def test_decoding_brackets_what_was_encoded():
    x = history(500, 8)
    w = compat_windows(x, GateSettings(mode="compat", stride=436))
    atr = average_true_range(x)
    decoded = decode_bytes(candle_bytes(x, atr, history_splits(x))[1:], 1.0, 1.0, w.splits.volume)
    moves = np.minimum(abs(np.diff(x.close)) / atr[1:], 1)
    assert np.abs(decoded["abs_move"].to_numpy() - moves).max() <= 0.14
    assert (decoded["up"].to_numpy() == (np.diff(x.close) >= 0)).all()
    assert (decoded["volume"].to_numpy() > w.splits.volume).tolist() == (x.volume[1:] >= w.splits.volume).tolist()
