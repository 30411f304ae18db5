"""Whole-tie deciles: invariants, a pandas-free twin, and the block permutation test."""
import math

import numpy as np
import polars as pl
import pytest
from deskbook.core.errors import BadInput
from deskbook.studies.deciles import block_shuffle, decile_bins, decile_table, decile_tables, monotonicity
from deskbook.studies.forward import forward_returns
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

scores = st.lists(st.one_of(st.integers(0, 8).map(float), st.floats(-1, 1), st.just(math.nan)), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(scores, st.integers(2, 12), st.randoms(use_true_random=False))
def test_bins_follow_the_middle_rank_keep_ties_and_ignore_row_order(xs, k, rnd):
    x = np.array(xs)
    b = decile_bins(x, k)
    ok = ~np.isnan(x)
    assert (b[~ok] == 0).all()
    if ok.any():
        want = np.minimum(np.floor(k * (rankdata(x[ok]) - 0.5) / ok.sum() + 1e-12), k - 1) + 1  # average ranks, scipy
        np.testing.assert_array_equal(b[ok], want)
    p = np.array(rnd.sample(range(len(x)), len(x)))
    np.testing.assert_array_equal(decile_bins(x[p], k), b[p])


@settings(max_examples=100, deadline=None)
@given(scores, st.integers(0, 2**32))
def test_the_table_equals_numpy_on_the_bins(xs, seed):
    x, rng = np.array(xs), np.random.default_rng(seed)
    r = rng.normal(0, 5, len(x))
    r[rng.random(len(x)) < 0.1] = np.nan
    t, keep = decile_table(x, r), ~np.isnan(r) & ~np.isnan(x)
    b = decile_bins(np.where(keep, x, np.nan))
    assert t["count"].sum() == keep.sum()
    for d, n, low, high, mean, lift, sd, pos in t.iter_rows():
        v = r[b == d]
        assert (n, low, high) == (len(v), x[b == d].min(), x[b == d].max())
        np.testing.assert_allclose([mean, lift, pos], [v.mean(), v.mean() - r[keep].mean(), (v > 0).mean()], atol=1e-10)
        assert sd is None if n == 1 else sd == pytest.approx(v.std(ddof=1), abs=1e-9)


def test_a_return_cannot_move_a_row_to_another_bin():
    """The archive's leak: with tied scores the return chose the bin."""
    rng = np.random.default_rng(0)
    x, r = rng.integers(0, 5, 500) / 10, rng.normal(0, 1, 500)
    t = decile_table(x, r)
    np.testing.assert_array_equal(t["count"], decile_table(x, rng.permutation(r))["count"])
    assert t.height == 5 and np.abs(t["lift_bp"]).max() < 0.3


def test_equal_sizes_without_ties_and_one_bin_when_all_tie():
    assert decile_table(np.random.default_rng(0).permutation(440).astype(float), np.zeros(440))["count"].to_list() == [44] * 10
    one = decile_table(np.full(30, 0.5), np.arange(30.0))
    assert one.height == 1 and one["lift_bp"][0] == 0
    assert decile_table(np.array([]), np.array([])).height == 0


def test_tables_of_all_cells_equal_single_tables():
    rng = np.random.default_rng(1)
    n = 400
    time = pl.Series("time", 1762131780000 + 60_000 * np.arange(n)).cast(pl.Datetime("ms", "UTC"))
    candles = pl.concat(pl.DataFrame({"instrument": name, "time": time}).with_columns(
        **dict.fromkeys(("open", "high", "low", "close"), pl.Series(np.exp(np.cumsum(rng.normal(0, 1e-4, n)))))) for name in ("BTCUSDT-PERP", "ETHUSDT-PERP"))
    gates = candles.select("instrument", "time", asof=pl.col("time").dt.offset_by("1m"), hazard=pl.Series(rng.integers(40, 60, 2 * n) / 100))
    fr = forward_returns(gates, candles, (5, 15), cost="none")
    whole = decile_tables(fr, sides=("long", "short"))
    assert whole.equals(decile_tables(fr, sides=("long", "short"), threads=0))
    for name, rows in fr.rows.items():
        for k, h in enumerate(fr.horizons_min):
            for side in ("long", "short"):
                part = whole.filter(instrument=name, horizon_min=h, side=side).drop("instrument", "horizon_min", "side")
                assert part.equals(decile_table(fr.gates["hazard"].to_numpy()[rows], fr.net_bp(side)[rows, k]))
    assert decile_tables(forward_returns(gates.clear(), candles, (5,), cost="none")).height == 0
    with pytest.raises(BadInput, match="no column 'hazrd'"):
        decile_tables(fr, "hazrd")


def test_wrong_bins_are_refused():
    for k in (1, 0, 101):
        with pytest.raises(BadInput, match="2 to 100"):
            decile_bins(np.arange(5.0), k)
    with pytest.raises(BadInput, match="do not pair up"):
        decile_table(np.arange(5.0), np.arange(4.0))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99))
def test_a_block_shuffle_is_a_permutation_of_whole_blocks(n, block, seed):
    p = block_shuffle(n, block, np.random.default_rng(seed))
    assert sorted(p.tolist()) == list(range(n))
    steps = (np.diff(p) % n) == 1
    assert steps.sum() >= n - math.ceil(n / block) - 1 if n > 1 else True


def test_monotonicity_is_spearman_and_its_p_value_is_honest_under_overlap():
    rng = np.random.default_rng(2)
    x, noise = rng.normal(size=400), rng.normal(size=(200, 415))
    assert monotonicity(x, x**3, 15, 99).p_value == 0.01
    y = noise[0][:400]
    assert monotonicity(x, y, 1, 0).rho == pytest.approx(spearmanr(x, y).statistic)
    def smooth(a):
        return np.convolve(a, np.ones(15), "valid")[:400]
    plain = blocked = 0
    for i in range(0, 100, 2):
        a, b = smooth(noise[i]), smooth(noise[i + 1])
        plain += spearmanr(a, b).pvalue < 0.05
        blocked += monotonicity(a, b, 60, 99, seed=i).p_value < 0.05
    assert plain > 20 and blocked < 8


def test_undefined_monotonicity_is_nan_and_not_an_error():
    assert math.isnan(monotonicity([1, 2], [1, 2], 1).rho)
    assert math.isnan(monotonicity([1, 1, 1, 1], [1, 2, 3, 4], 1).rho)
    m = monotonicity([1, 2, 3, 4], [1, 2, 3, math.nan], 2)
    assert m.rho == pytest.approx(1) and math.isnan(m.p_value) and m.n == 3
