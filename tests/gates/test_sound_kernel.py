"""The compiled step against its plain twin, in every split and at every size."""
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.gates.direction import example_tapes
from deskbook.gates.settings import GateSettings
from deskbook.gates.sorted_memory import exchange, in_order, insert, median, refill, remember
from deskbook.gates.sound_kernel import LABELS, OUT, OUT_INT, REASONS, KernelMemory, advance
from deskbook.gates.sound_regime import CandleArrays, plain_gates, tape_candles

QUALITY = {"domain_wall_t": "q_wall_slope", "spectral_lowf_share": "q_low_share", "temporal_half_life": "q_half_life",
    "spatial_corr_length": "q_length", "pinned_alignment": "q_pinned", "hazard_rate": "q_rate"}


def heavy(n, seed, persistence=0.0):
    """Closes with changing volatility, repeated closes and, if asked, persistent returns."""
    rng = np.random.default_rng(seed)
    e = rng.standard_t(3, n) * 1e-4 * np.repeat(rng.uniform(0.3, 2, n // 50 + 1), 50)[:n]
    e[rng.random(n) < 0.1] = 0
    for i in range(1, n): e[i] += persistence * e[i - 1]
    return 1.08 * np.exp(e.cumsum())


def with_holes(x, seed):
    keep = np.random.default_rng(seed).random(len(x)) > 0.07
    y = CandleArrays(*(getattr(x, f)[keep] for f in x.__dataclass_fields__))
    missing = np.diff(y.time, prepend=y.time[0] - 60_000) // 60_000 - 1
    return CandleArrays(*(getattr(y, f) for f in list(x.__dataclass_fields__)[:-1]), missing)


def compare(x, s):
    k, plain = advance(KernelMemory(s), x), plain_gates(x, s)
    assert len(k) == len(plain)
    for i, g in enumerate(plain):
        whole = dict(zip(OUT_INT, k.whole[i].tolist()))
        assert (whole["end"], LABELS[whole["regime"]], whole["lock_in_phase"]) == (g["end"], g["regime"], g["lock_in_phase"])
        assert (k.codes[i] == g["codes"]).all()
        for j, name in enumerate(OUT):
            want = g["regime_confidence"] if name == "regime_confidence" else x.close[g["end"]] if name == "price_close" else g["measures"][name].value
            got = None if np.isnan(k.real[i, j]) else k.real[i, j]
            assert got == (None if want is None else pytest.approx(want, rel=1e-8, abs=1e-11)), (name, i)
        for name, column in QUALITY.items():
            assert REASONS[whole[column]] == g["measures"][name].quality, (name, i)
    return k


CASES = {"heavy": heavy(1500, 1), "persistent": heavy(1200, 2, 0.5), "reverting": heavy(1200, 3, -0.4), **example_tapes(600)}


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_its_plain_twin(name):
    k = compare(tape_candles(CASES[name], seed=4), GateSettings(warmup_samples=8, max_samples=40))
    assert len(k) > 20


@pytest.mark.parametrize("s", [GateSettings(stride=1, warmup_samples=10, max_samples=50), GateSettings(window=30, stride=7, context=30, warmup_samples=2),
    GateSettings(window=8, stride=5, context=33, atr_period=40, warmup_samples=0), GateSettings(window=65, stride=3, context=101, warmup_samples=3)], ids=str)
def test_other_sizes(s):
    compare(tape_candles(heavy(420, 5), seed=1), s)


def test_holes_in_time():
    k = compare(with_holes(tape_candles(heavy(1200, 6), seed=2), 3), GateSettings(warmup_samples=8))
    gaps, span = k.whole[:, OUT_INT.index("gap_count")], k.whole[:, OUT_INT.index("span_s")]
    assert (span == 60 * (64 + gaps)).all() and gaps.max() > 3


def test_all_labels_occur_on_a_lively_tape():
    x = tape_candles(np.concatenate([heavy(4000, 7, 0.35), heavy(4000, 8, -0.35)]), seed=3)
    k = advance(KernelMemory(GateSettings(stride=2)), x)
    assert {LABELS[i] for i in k.whole[:, 2]} == {"trend_bull", "trend_bear", "mean_revert", "chaotic", "neutral"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1500), max_size=8), st.sampled_from([1, 5, 16]))
def test_any_split_gives_the_same_bits(cuts, stride):
    s = GateSettings(stride=stride, warmup_samples=8, max_samples=60)
    x = tape_candles(CASES["heavy"], seed=4)
    whole, memory, edges = advance(KernelMemory(s), x), KernelMemory(s), [0, *sorted(cuts), 1500]
    parts = [advance(memory, x.part(a, b)) for a, b in pairwise(edges)]
    for part, want in (("real", whole.real), ("codes", whole.codes), ("whole", whole.whole)):
        assert np.concatenate([getattr(p, part) for p in parts]).tobytes() == want.tobytes()


def test_one_candle_at_a_time_over_several_turns_of_the_history():
    s = GateSettings(stride=4, warmup_samples=8, max_samples=60)
    x, memory = tape_candles(heavy(3000, 9), seed=4), KernelMemory(s)
    parts = [advance(memory, x.part(i, i + 1)) for i in range(3000)]
    assert memory.hist.shape[1] < 1200
    assert np.concatenate([p.real for p in parts]).tobytes() == advance(KernelMemory(s), x).real.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.integers(1, 20))
def test_sorted_memory_is_sorting(values, size):
    rows, n, head = np.zeros((2, size)), 0, 0
    for i, v in enumerate(values):
        n, head = remember(rows, n, head, v)
        kept = values[max(0, i + 1 - size):i + 1]
        assert rows[1, :n].tolist() == sorted(kept) and in_order(rows[0], n, head).tolist() == kept
        assert median(rows[1], n) == np.median(kept)
    again = np.zeros((2, size))
    assert refill(again, in_order(rows[0], n, head))[0] == n and (again[1] == rows[1]).all()


def test_exchange_and_insert_with_equal_values():
    a = np.zeros(4)
    for n, v in enumerate([1.0, 1.0, 1.0]): insert(a, n, v)
    exchange(a, 3, 1.0, 1.0)
    assert a[:3].tolist() == [1, 1, 1]
    exchange(a, 3, 1.0, 0.0)
    assert a[:3].tolist() == [0, 1, 1]
