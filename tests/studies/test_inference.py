"""Inference against its twins in statsmodels, scikit-learn and plain loops, and its promise on noise."""
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from deskbook.core.errors import BadInput
from deskbook.studies.inference import (
    adjust,
    auroc,
    block_length,
    bucket_sums,
    detectable_mean,
    hac_lag,
    hac_se,
    independent_windows,
    mean_test,
    mean_tests,
    overlap_rows,
    replicate_auroc,
    replicate_interval,
    replicate_means,
    replicate_weights,
    time_buckets,
)

MIN = 60_000


def test_hac_is_newey_west_by_hand():
    x, lag = np.random.default_rng(1).normal(size=200).cumsum(), 7
    e = x - x.mean()
    s = (e @ e) + 2 * sum((1 - k / (lag + 1)) * (e[k:] @ e[:-k]) for k in range(1, lag + 1))
    assert hac_se(x, lag) == pytest.approx(math.sqrt(s * 200 / 199) / 200, rel=1e-12)
    fit = OLS(x, np.ones(200)).fit(cov_type="HAC", cov_kwds={"maxlags": lag, "use_correction": True})
    assert hac_se(x, lag) == fit.bse[0]


@pytest.mark.parametrize("horizon, rows", [(5, 1), (16, 1), (17, 2), (60, 4), (240, 15)])
def test_lag_reaches_over_the_overlap(horizon, rows):
    assert overlap_rows(horizon, 16) == rows
    assert hac_lag(450, horizon, 16) >= rows
    assert hac_lag(3, horizon, 16) <= 2


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60, unique=True), st.integers(1, 400), st.integers(1, 3))
def test_windows_do_not_overlap_and_none_is_left_out(minutes, horizon, groups):
    t = np.sort(np.array(minutes)) * MIN
    g = np.arange(len(t)) % groups
    got = independent_windows(t, horizon, g, groups)
    for k in range(groups):
        own, taken = t[g == k], []
        for x in own:
            if not taken or x >= taken[-1] + horizon * MIN:
                taken.append(x)
        assert got[k] == len(taken)


def test_bucket_product_equals_resampling_rows():
    rng = np.random.default_rng(3)
    t = np.concatenate([np.arange(90) * 16 * MIN, np.arange(90) * 16 * MIN])
    x, cell = rng.normal(size=180), np.repeat([0, 1], 90)
    x[5] = math.nan
    b = time_buckets(t, 16)
    w = replicate_weights(len(b), 6, 25, seed=4)
    sums, counts = bucket_sums(b.index, cell, x, len(b), 2)
    means = replicate_means(w, sums, counts)
    for r in range(25):
        for c in range(2):
            rows = [v for v, k, u in zip(x, cell, b.index) if k == c and np.isfinite(v) for _ in range(int(w[r, u]))]
            assert means[r, c] == pytest.approx(np.mean(rows), abs=1e-12)


def test_common_blocks_keep_the_correlation_between_instruments():
    rng = np.random.default_rng(5)
    shared = rng.normal(size=400)
    w = replicate_weights(400, 5, 1000, seed=1)
    x = np.column_stack([shared + 0.1 * rng.normal(size=400), shared + 0.1 * rng.normal(size=400)])
    means = replicate_means(w, x, np.ones((400, 2)))
    assert np.corrcoef(means.T)[0, 1] > 0.95


def test_replicates_are_seeded_and_whole():
    a, b = (replicate_weights(100, 7, 50, seed=s) for s in (1, 1))
    assert (a == b).all() and (a.sum(1) == 100).all()
    assert (a != replicate_weights(100, 7, 50, seed=2)).any()
    with pytest.raises(BadInput):
        replicate_weights(0, 7, 50, seed=1)


def test_block_length_is_at_least_the_overlap():
    rng = np.random.default_rng(6)
    noise, walk = rng.normal(size=400), np.convolve(rng.normal(size=420), np.ones(21), "valid")
    assert block_length([noise], 15, 400) >= 15
    assert block_length([walk], 1, 400) > block_length([noise], 1, 400)
    assert block_length([np.ones(400)], 1, 400) == 1
    assert block_length([], 4, 5) >= 1


def test_without_dependence_the_mean_test_is_the_t_test():
    x = np.random.default_rng(7).normal(0.2, 1, 300)
    t = mean_test(x, 300)
    assert t.p == pytest.approx(stats.ttest_1samp(x, 0, alternative="greater").pvalue, rel=1e-12)
    low, high = stats.t.interval(0.95, 299, x.mean(), stats.sem(x))
    assert (t.low, t.high) == pytest.approx((low, high), rel=1e-12)


@settings(deadline=None)
@given(st.floats(0.01, 50), st.floats(0.01, 50), st.integers(2, 300))
def test_more_dependence_never_makes_it_surer(hac, boot, windows):
    x = np.linspace(-1, 2, 300)
    plain, careful = mean_test(x, 300), mean_test(x, windows, hac, boot)
    assert careful.n_eff <= plain.n_eff and careful.se >= plain.se * (1 - 1e-12) and careful.p >= plain.p * (1 - 1e-9)
    assert 2 <= careful.n_eff <= 300


@pytest.mark.parametrize("values, windows", [([], 0), ([1.0], 1), ([2.0] * 50, 50), ([1.0, 2.0, 3.0], 1)])
def test_what_cannot_be_tested_is_nan(values, windows):
    t = mean_test(np.array(values), windows)
    assert math.isnan(t.p) and math.isnan(t.se) and math.isnan(t.low)


def test_arrays_and_numbers_agree():
    many = mean_tests(np.array([40.0, 50.0]), np.array([1.0, -1.0]), np.array([3.0, 4.0]), np.array([10.0, 50.0]), np.array([0.5, math.nan]))
    for i, (n, w) in enumerate([(40, 10), (50, 50)]):
        one = many.at(i)
        assert (one.n, one.n_eff) == (n, w)
        assert one.p == pytest.approx(stats.t.sf(one.mean / one.se, w - 1))


def test_adjust_keeps_untested_out_of_the_family():
    p = np.array([0.01, math.nan, 0.02, 0.5])
    got = adjust(p)
    assert math.isnan(got[1])
    assert got[[0, 2, 3]] == pytest.approx(multipletests(p[[0, 2, 3]], method="holm")[1])
    assert adjust(p, "fdr_bh")[[0, 2, 3]] == pytest.approx(multipletests(p[[0, 2, 3]], method="fdr_bh")[1])


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(0, 10_000))
def test_weighted_auroc_is_sklearns(n, seed):
    rng = np.random.default_rng(seed)
    score, label = rng.integers(0, 6, n).astype(float), rng.random(n) < 0.5
    w = replicate_weights(n, 3, 5, seed=1)
    got = replicate_auroc(score, label, np.arange(n), w)
    for r in range(5):
        if len(set(label[w[r] > 0])) == 2:
            assert got[r] == pytest.approx(roc_auc_score(label, score, sample_weight=w[r]), abs=1e-12)
        else:
            assert math.isnan(got[r])
    assert math.isnan(auroc(score, np.zeros(n, bool)))


def test_interval_is_widened_where_the_bootstrap_is_too_sure():
    reps = np.random.default_rng(8).normal(0.5, 0.02, 500)
    x = np.random.default_rng(9).normal(size=450)
    plain = replicate_interval(0.5, reps, mean_test(x, 450, se_boot=0.05), bounds=(0, 1))
    wide = replicate_interval(0.5, reps, mean_test(x, 30, se_boot=0.05), bounds=(0, 1))
    assert wide[1] - wide[0] > 2 * (plain[1] - plain[0])
    assert replicate_interval(0.99, reps, mean_test(x, 30, se_boot=0.05), bounds=(0, 1))[1] == 1
    assert all(map(math.isnan, replicate_interval(math.nan, reps, mean_test(x, 30))))


def test_detectable_mean_is_detected():
    n, family = 112, 70
    mde = detectable_mean(1 / math.sqrt(n), n, family)
    rng = np.random.default_rng(10)
    p = stats.ttest_1samp(rng.normal(mde, 1, (4000, n)), 0, axis=1, alternative="greater").pvalue
    assert np.mean(p < 0.05 / family) == pytest.approx(0.8, abs=0.03)
    assert math.isnan(detectable_mean(math.nan, n, 70))


@pytest.mark.parametrize("overlap", [1, 4, 15])
def test_noise_is_not_called_an_edge(overlap):
    """The tail that Holm needs: overlapping returns with fat tails and storms, 3,000 weeks, both sides."""
    rng = np.random.default_rng(overlap)
    steps = rng.standard_t(5, (3000, 465)) * np.exp(0.4 * rng.normal(size=(3000, 1)) * np.sin(np.arange(465) / 40))
    total = np.cumsum(np.pad(steps, ((0, 0), (1, 0))), 1)
    x = total[:, overlap:] - total[:, :-overlap]
    n = x.shape[1]
    t = mean_tests(np.full(3000, n), x.mean(1), x.std(1, ddof=1), np.full(3000, math.ceil(n / overlap)))
    both = np.concatenate([t.p, 1 - t.p])
    assert np.mean(both < 0.05) < 0.062
    assert np.mean(both < 0.0007) < 0.0020  # 6,000 tests: 4.2 expected
    drift = mean_tests(np.full(3000, n), x.mean(1) + 4 * x.mean(1).std(), x.std(1, ddof=1), np.full(3000, math.ceil(n / overlap)))
    assert np.mean(drift.p < 0.0007) > 0.6
