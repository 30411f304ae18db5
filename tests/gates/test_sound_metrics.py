"""The plain definitions against libraries, closed forms and the four tapes."""
import math

import numpy as np
import pytest
from arch.unitroot import VarianceRatio
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from deskbook.gates.direction import (binary_entropy, correlation_length, direction_entropy, direction_plane, example_tapes, hazard_rate,
    same_direction_share, tau_slope, wall_density, wall_slope)
from deskbook.gates.persistence import autocorrelation, half_life, low_frequency_share, variance_ratio
from deskbook.gates.settings import GateSettings
from deskbook.gates.sound_regime import candle_codes, gate_ends, plain_gates, regime_label, tape_candles, trend_strength

SIGNS = st.lists(st.sampled_from([-1, 1]), min_size=16, max_size=96).map(lambda x: np.array(x, np.int8))


@given(SIGNS)
def test_shares_are_shares_and_lag_one_is_the_complement_of_walls(s):
    assert 0 <= direction_entropy(s) <= 1
    assert math.isclose(same_direction_share(s, 1), 1 - wall_density(s))
    assert direction_entropy(s) == pytest.approx(stats.entropy([np.mean(s > 0), np.mean(s < 0)], base=2), abs=1e-12)


@given(SIGNS)
def test_turning_the_plane_upside_down_changes_no_wall(s):
    assert wall_density(s) == wall_density(-s)
    assert wall_slope(s) == wall_slope(-s)
    assert tau_slope(s) == tau_slope(-s)


def test_equal_closes_point_up():
    assert direction_plane(np.array([1.0, 1.0, 0.9, 0.9]), 1.0).tolist() == [1, 1, -1, 1]


def test_wall_slope_is_ordinary_least_squares():
    s = direction_plane(example_tapes(65, seed=3)["random walk"], 1.08)[1:]
    later = np.arange(1, 64)
    density = [np.mean((s[1:] != s[:-1])[later // 8 == b]) for b in range(8)]
    fit = stats.linregress(np.arange(8), density)
    slope, t = wall_slope(s)
    assert slope.value == pytest.approx(fit.slope, rel=1e-12) and t.value == pytest.approx(fit.slope / fit.stderr, rel=1e-9)


@given(st.floats(0.001, 0.499))
def test_the_correlation_length_gives_the_neighbour_correlation_back(d):
    assert math.exp(-1 / correlation_length(d).value) == pytest.approx(1 - 2 * d, rel=1e-9)


def test_the_ends_of_each_scale_have_a_reason_or_a_plain_zero():
    assert (correlation_length(0).value, correlation_length(0).quality) == (None, "no_walls")
    assert correlation_length(0.5).value == correlation_length(1.0).value == 0
    assert hazard_rate(1.0).value is None and hazard_rate(0.0).value == 0
    assert binary_entropy(0) == binary_entropy(1) == 0 and binary_entropy(0.5) == 1


@pytest.mark.parametrize("seed", range(5))
def test_variance_ratio_and_z_are_those_of_arch(seed):
    r = np.random.default_rng(seed).standard_t(4, 240) * 1e-4 * (1 + seed * np.linspace(0, 1, 240))
    theirs = VarianceRatio(np.r_[0, r.cumsum()], lags=4, robust=True, debiased=True, overlap=True)
    ratio, z = variance_ratio(r)
    assert ratio.value == pytest.approx(theirs.vr, rel=1e-10) and z.value == pytest.approx(theirs.stat, rel=2e-2)


def test_the_variance_ratio_z_is_standard_on_noise():
    rng = np.random.default_rng(0)
    z = np.array([variance_ratio(rng.normal(0, 1e-4, 240))[1].value for _ in range(1500)])
    assert abs(z.mean()) < 0.15 and 0.9 < z.std() < 1.1


@pytest.mark.parametrize("n", [63, 64, 65, 128])
def test_spectral_share_is_that_of_scipys_periodogram(n):
    r = np.random.default_rng(n).normal(0, 1e-4, n)
    _, power = signal.periodogram(r, detrend="constant", scaling="spectrum")
    power = power[1:].copy()
    if n % 2 == 0: power[-1] *= 2  # one-sided scaling halves the others
    assert low_frequency_share(r).value == pytest.approx(power[:n // 8].sum() / power.sum(), rel=1e-9)


def test_half_life_finds_the_decay_it_was_given():
    rho = [0.8 ** k for k in range(1, 6)]
    assert half_life(_with_autocorrelation(rho)).value == pytest.approx(-math.log(2) / math.log(0.8) * 60, rel=0.25)


def _with_autocorrelation(rho, n=20_000):
    e, x = np.random.default_rng(1).normal(0, 1e-4, n), np.zeros(n)
    for i in range(1, n): x[i] = rho[0] * x[i - 1] + e[i]
    return x


def test_one_significant_lag_is_an_ar1_half_life():
    rng = np.random.default_rng(0)
    for _ in range(200):
        e = rng.normal(0, 1, 241)
        r = e[1:] + 0.35 * e[:-1]  # MA(1): only the first lag
        bar = 2 / math.sqrt(240)
        if autocorrelation(r, 1) > bar >= autocorrelation(r, 2):
            assert half_life(r).value == pytest.approx(-math.log(2) / math.log(autocorrelation(r, 1)) * 60)
            return
    pytest.fail("no sample with one significant lag")


def test_the_constant_tape_is_flat_everywhere():
    r = np.zeros(240)
    assert {m.quality for m in (*variance_ratio(r), half_life(r), low_frequency_share(r))} == {"flat"}
    drift = np.full(240, 1e-4)
    assert variance_ratio(drift)[0].quality == "flat"


def test_monotone_and_alternating_tapes_sit_at_the_ends_of_the_ratio():
    ramp = 1.08 + 1e-4 * np.arange(240)
    assert 3.5 < variance_ratio(np.diff(np.log(ramp)))[0].value < 4.1
    odd = example_tapes()["alternating"]
    assert variance_ratio(np.diff(np.log(odd)))[0].value < 0.01


def test_trend_strength_of_a_random_walk_has_spread_one_point_one():
    r = np.random.default_rng(3).normal(0, 1e-4, (1000, 64))
    sd = np.std([trend_strength(np.exp(x.cumsum()), x) for x in r])
    assert 1.0 < sd < 1.2


@given(st.integers(0, 40), st.integers(1, 40))
def test_gates_stand_on_the_clock_whatever_the_first_candle(skip, stride):
    time = 60_000 * np.arange(300)
    whole, part = gate_ends(time, 64, stride), gate_ends(time[skip:], 64, stride) + skip
    assert set(part) <= set(whole) and set(whole[whole >= skip + 64]) <= set(part)


def test_codes_do_not_know_the_price_level():
    x = tape_candles(example_tapes(200)["random walk"])
    k = 2.0 ** 7
    y = type(x)(x.time, x.open * k, x.high * k, x.low * k, x.close * k, x.volume, x.spread * k, x.missing)
    assert (candle_codes(x, 14, 40, 1e-4) == candle_codes(y, 14, 40, 1e-4 * k)).all()


@given(st.floats(-5, 5), st.floats(-1, 1), st.floats(0, 3), st.integers(0, 200), st.floats(0, 4), st.floats(-4, 4))
def test_every_label_is_known_and_every_confidence_a_share(trend, autocorr, ratio, seen, vr, z):
    past = list(np.linspace(0.3, 0.9, seen))
    label, confidence = regime_label(trend, autocorr, ratio, past, vr, z, GateSettings())
    assert label in ("trend_bull", "trend_bear", "mean_revert", "chaotic", "neutral") and 0 <= confidence <= 1


def test_a_window_below_64_candles_is_insufficient():
    gates = plain_gates(tape_candles(example_tapes(100)["random walk"]), GateSettings(window=32, warmup_samples=0))
    assert {(g["regime"], g["regime_confidence"]) for g in gates} == {("insufficient", 0.0)}


def test_quiet_alone_is_not_mean_reverting():
    past, s = list(np.linspace(0.4, 0.8, 200)), GateSettings()
    assert regime_label(0, 0.05, 0.41, past, 0.98, -0.3, s)[0] == "neutral"
    assert regime_label(0, 0.05, 0.41, past, 0.70, -2.0, s)[0] == "mean_revert"
    assert regime_label(0, -0.15, 0.41, past, 1.00, 0.0, s)[0] == "mean_revert"
    assert regime_label(0, -0.15, 0.60, past, 1.00, 0.0, s)[0] == "neutral"
