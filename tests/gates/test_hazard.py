"""Thresholds, repetitions and admission: against the archive, against a naive calibrator, and across restarts."""
import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.core.errors import BadInput, DataError
from deskbook.gates.hazard import (Calibration, HazardCalibrator, Judgement, ReferenceCalibrator, SignatureMemory, admission_reasons, admit_all, calibrate, calibrator_for,
    calibrator_from, calibrator_summary, count_repetitions, direction_of, sorted_mad)
from deskbook.gates.payload import read_gates_jsonl
from deskbook.gates.settings import GateSettings
from deskbook.gates.structure import signature_of

# The archive


@pytest.mark.data
@pytest.mark.parametrize("name, percentile", [("gates_2025-11-03_to_2025-11-10.jsonl", 0.99), ("gates_with_roc.jsonl", 0.95)])
def test_archived_week(shared_data, name, percentile):
    "Threshold, reasons, admit and repetitions of every archived gate, from its hazard and metrics alone."
    gates, bad = read_gates_jsonl(shared_data / "golden-study" / name)
    assert not bad and gates.height == len((shared_data / "golden-study" / name).read_text().splitlines()) > 1000
    s = GateSettings(mode="compat", hazard_percentile=percentile)
    for (instrument,), g in gates.group_by("instrument", maintain_order=True):
        assert g["time"].is_sorted()
        hazard, time = g["hazard"].to_numpy(), g["time"].dt.epoch("ms").to_numpy()
        judged = calibrate(hazard, calibrator_for(s))
        admit, reasons = admit_all(hazard, judged, g["regime"], g["regime_confidence"].to_numpy(), s)
        signature = [signature_of(*m) for m in g.select("coherence", "stability", "entropy").iter_rows()]
        assert judged.threshold.tolist() == g["hazard_threshold"].to_list(), instrument
        assert reasons.to_list() == g["reasons"].to_list(), instrument
        assert admit.tolist() == g["admit"].to_list(), instrument
        assert count_repetitions(signature, time, s.signature_ms).tolist() == g["repetitions"].to_list(), instrument
        memory, stream = SignatureMemory(s.signature_ms), calibrator_for(s)
        assert [memory.push(x, t) for x, t in zip(signature, time)] == g["repetitions"].to_list()
        assert [stream.push(h).threshold for h in hazard] == g["hazard_threshold"].to_list()


@pytest.mark.data
def test_calibrator_vectors(shared_data):
    golden = json.loads((shared_data / "golden-engine" / "calibrator" / "calibrator.json").read_text())
    hazards = golden["hazard_sequence"]
    for case in golden["cases"]:
        p, m = case["percentile"], case["max_samples"]
        old = calibrate(np.array(hazards), ReferenceCalibrator(p, m))
        assert old.threshold.tolist() == case["threshold_reference_evict_min"]
        assert np.flatnonzero(old.exceeded).tolist() == case["exceeds_reference"]
        assert np.flatnonzero(old.fallback).tolist() == case["fallback_reference"]
        fifo, seen = HazardCalibrator(p, m, warmup_samples=0), []
        for h in hazards:
            fifo.update(h)
            seen.append(fifo.threshold())
        assert seen == case["threshold_fifo"]


# Against a calibrator without cleverness


def naive(rule, hazards, percentile, size, cap, warmup, multiplier, mads):
    "Sort everything, every time."
    past, out = [], []
    for h in hazards:
        if rule == "reference":
            past = sorted([*past, h])[-size:]
        n, warming = len(past), rule == "prior" and len(past) < max(1, warmup)
        threshold = cap if warming else min(sorted(past)[int(percentile * (n - 1))], cap)
        exceeded = h > threshold
        spread = 1.4826 * np.median(np.abs(np.array(past) - np.median(past))) if past else 0.0
        far = rule == "prior" and not warming and spread > 0 and h > threshold + mads * spread
        out.append((threshold, exceeded, exceeded and (h > multiplier * threshold or far), warming))
        if rule == "prior":
            past = [*past, h][-size:]
    return out


HAZARDS = st.lists(st.one_of(st.floats(0, 1, width=32), st.integers(40, 60).map(lambda k: k / 100)), max_size=120)


@settings(max_examples=150, deadline=None)
@given(HAZARDS, st.sampled_from([0.05, 0.5, 0.8, 0.95, 0.99]), st.integers(1, 40), st.sampled_from([1.0, 0.55, 0.3]), st.integers(0, 30), st.floats(1, 2), st.sampled_from([0.0, 0.5, 4.0]), st.data())
def test_batch_stream_and_naive_are_one(hazards, percentile, size, cap, warmup, multiplier, mads, data):
    cut = data.draw(st.integers(0, len(hazards)))
    for rule, start in (("reference", ReferenceCalibrator(percentile, size, cap, multiplier)), ("prior", HazardCalibrator(percentile, size, cap, warmup, multiplier, mads))):
        expected = naive(rule, hazards, percentile, size, cap, warmup, multiplier, mads)
        one, before = calibrator_from(json.loads(json.dumps(start.to_dict()))), start.to_dict()
        assert [tuple(one.push(h)) for h in hazards] == expected
        whole = calibrate(np.array(hazards, float), start)
        first = calibrate(np.array(hazards[:cut], float), start)
        second = calibrate(np.array(hazards[cut:], float), calibrator_from(json.loads(json.dumps(first.calibrator.to_dict()))))
        for column, name in enumerate(("threshold", "exceeded", "fallback", "warmup")):
            values = [e[column] for e in expected]
            assert getattr(whole, name).tolist() == values, name
            assert np.r_[getattr(first, name), getattr(second, name)].tolist() == values, name
        assert whole.calibrator.to_dict() == second.calibrator.to_dict() == one.to_dict()
        assert start.to_dict() == before


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_mad(values):
    v = np.sort(values)
    assert sorted_mad(v, len(v)) == pytest.approx(np.median(np.abs(v - np.median(v))), rel=1e-12, abs=1e-15)


def test_the_present_is_not_its_own_past():
    "Changing a hazard changes nothing that was said about it or before it."
    h = np.random.default_rng(2).normal(0.5, 0.03, 300)
    other = h.copy()
    other[200:] = 0.99
    a, b = (calibrate(x, HazardCalibrator()) for x in (h, other))
    assert a.threshold[:201].tolist() == b.threshold[:201].tolist()
    assert a.threshold[201:].tolist() != b.threshold[201:].tolist()


def test_oldest_is_forgotten_smallest_is_not():
    rising = HazardCalibrator(0.95, max_samples=64)
    for h in [0.9] * 64 + [0.1] * 64:
        rising.push(h)
    assert rising.threshold() == 0.1
    ratchet = ReferenceCalibrator(0.95, max_samples=64)
    for h in [0.9] * 64 + [0.1] * 64:
        ratchet.push(h)
    assert ratchet.threshold() == 0.9


def test_warmup_uses_the_cap():
    c = HazardCalibrator(cap=0.5)
    assert [c.push(0.6).warmup for _ in range(65)] == [True] * 64 + [False]
    assert HazardCalibrator(cap=0.5).push(0.6) == Judgement(0.5, True, False, True)
    assert HazardCalibrator(cap=0.3).push(0.6) == Judgement(0.3, True, True, True)
    assert ReferenceCalibrator(cap=0.5).threshold() == 0.5


def test_hazards_that_are_not_numbers():
    h = np.array([0.5] * 70 + [np.nan, np.inf, 0.4, np.nan])
    for start in (ReferenceCalibrator(), HazardCalibrator()):
        one, batch = calibrator_from(start.to_dict()), calibrate(h, start)
        judged = [one.push(x) for x in h]
        assert [j.threshold for j in judged] == batch.threshold.tolist()
        assert [j.exceeded for j in judged] == batch.exceeded.tolist()
        assert one.to_dict() == batch.calibrator.to_dict()
        assert all(np.isfinite(one.to_dict()["samples"]))
    s = GateSettings()
    admit, reasons = admit_all(h, batch, pl.Series(["neutral"] * len(h)), np.full(len(h), 0.5), s)
    assert not admit[70] and reasons[70].to_list() == ["hazard_invalid"]
    assert reasons[71].to_list()[0] == "hazard_invalid"


@pytest.mark.parametrize("state", [{}, {"kind": "prior"}, {"kind": "other", "samples": []}, {"kind": "prior", "samples": [1.5]}, {"kind": "prior", "samples": ["0.5"]},
                                   {"kind": "reference", "samples": [float("nan")]}, {"kind": "reference", "samples": [], "size": 3}])
def test_damaged_state_is_refused(state):
    with pytest.raises(DataError, match="hazard state"):
        calibrator_from(state)


# Repetitions


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=60), st.integers(1, 20))
def test_repetitions(steps, retention):
    names, times = [s for s, _ in steps], np.cumsum([t for _, t in steps]).astype(np.int64)
    naive_counts = [sum(names[j] == names[i] and times[i] - times[j] <= retention for j in range(i + 1)) for i in range(len(steps))]
    memory = SignatureMemory(retention)
    streamed = []
    for name, t in zip(names, times):
        memory = SignatureMemory.from_dict(json.loads(json.dumps(memory.to_dict())))
        streamed.append(memory.push(name, int(t)))
    assert streamed == naive_counts
    assert count_repetitions(names, times, retention).tolist() == naive_counts


def test_memory_of_signatures_stays_small():
    memory = SignatureMemory(60_000)
    for k in range(20_000):
        assert memory.push(f"c0.{k:06d}", k * 1000) == 1
    assert len(memory.to_dict()["seen"]) < 5000
    with pytest.raises(BadInput):
        SignatureMemory(0)
    with pytest.raises(DataError):
        SignatureMemory.from_dict({"retention_ms": 5, "seen": [1]})


# Admission


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans(), st.sampled_from(["trend_bull", "neutral", "insufficient"]), st.floats(0, 1)), max_size=30), st.sampled_from([0.0, 0.55, 1.0]))
def test_batch_admission(rows, minimum):
    s = GateSettings(admit_regimes=("trend_bull", "chaotic"), min_confidence=minimum)
    h, exceeded, fallback = (np.array([r[k] for r in rows], t) for k, t in ((0, float), (1, bool), (2, bool)))
    judged = Calibration(np.full(len(rows), 0.5), exceeded, fallback, np.zeros(len(rows), bool), HazardCalibrator())
    admit, reasons = admit_all(h, judged, pl.Series([r[3] for r in rows], dtype=pl.String), np.array([r[4] for r in rows], float), s)
    each = [admission_reasons(r[0], Judgement(0.5, r[1], r[2], False), r[3], r[4], s) for r in rows]
    assert reasons.to_list() == each and reasons.dtype == pl.List(pl.String)
    assert admit.tolist() == [not e for e in each]


def test_directions():
    assert Counter(map(direction_of, ("trend_bull", "trend_bear", "mean_revert", "chaotic", "neutral", "insufficient"))) == {"FLAT": 4, "BUY": 1, "SELL": 1}


def test_a_percentile_beyond_the_range_is_cut_in_compat_and_refused_in_sound():
    hazards = np.random.default_rng(0).uniform(0.4, 0.6, 300)
    for given_, used in ((1.0, 0.99), (0.0, 0.05)):
        got = calibrate(hazards, calibrator_for(GateSettings(mode="compat", hazard_percentile=given_)))
        assert got.threshold.tolist() == calibrate(hazards, ReferenceCalibrator(used)).threshold.tolist()
        with pytest.raises(BadInput, match="hazard_percentile"): GateSettings(hazard_percentile=given_)


def test_a_memory_that_can_never_be_warm_is_refused():
    "Else the cap stays the threshold for ever and the hazard refuses nothing."
    with pytest.raises(BadInput, match="never ends"): GateSettings(max_samples=63)
    assert not calibrate(np.full(65, 0.5), calibrator_for(GateSettings(max_samples=64))).warmup[-1]


def test_the_summary_says_what_the_calibrator_does():
    assert calibrator_summary(GateSettings(mode="compat", hazard_percentile=0.8, max_samples=9, hazard_max=0.3)) == {"percentile": 0.8, "buffer": 9, "cap": 0.3, "rule": "reference"}


@pytest.mark.parametrize("make", [ReferenceCalibrator, HazardCalibrator])
def test_a_batch_longer_than_the_memory_evicts_as_the_stream_does(make):
    hazards = np.random.default_rng(5).permutation(np.linspace(0.2, 0.8, 900))  # no ties: each eviction shows
    one, batch = make(percentile=0.9, max_samples=100), calibrate(hazards, make(percentile=0.9, max_samples=100))
    assert [one.push(float(h)).threshold for h in hazards] == batch.threshold.tolist()
