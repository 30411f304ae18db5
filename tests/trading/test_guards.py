"""Guards: every reason is told, what cannot be read admits nothing, and a tighter rule never admits more."""
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskbook.trading.guards import gate_reasons, metric_of
from deskbook.trading.profile import Guards, InstrumentProfile

NOW = 1_762_336_880_000
NAMES = [f.name for f in fields(Guards)]
METRICS = sorted({metric_of(n) for n in NAMES})
STEM = {"reynolds_ratio": "reynolds"}
ODD = st.sampled_from([None, math.nan, math.inf, -math.inf, "0.5", True, [], {}, 10**400])
REAL = st.floats(-2, 2, allow_nan=False)


def a_gate(**more):
    return {"instrument": "EUR_USD", "ts_ms": NOW - 80_000, "asof_ms": NOW - 20_000, "admit": True, "direction": "BUY", "lambda": 0.42, "hazard": 0.42,
            "repetitions": 3, "structure": dict.fromkeys(METRICS, 0.5), "regime": {"label": "trend_bull", "confidence": 0.7}, "reasons": [],
            "semantic_tags": ["highly_stable"]} | more


def rules(**more):
    return InstrumentProfile("EUR_USD", **more)


def guards(**values):
    return rules(guards=Guards(**values))


@pytest.mark.parametrize("name", NAMES)
def test_equal_passes_and_strictly_beyond_fails(name):
    metric, low = metric_of(name), name.startswith("min_")
    stem = STEM.get(metric, metric)
    assert gate_reasons(a_gate(), guards(**{name: 0.5}), NOW) == ()
    beyond = math.nextafter(0.5, 1 if low else 0)
    assert gate_reasons(a_gate(), guards(**{name: beyond}), NOW) == (f"{stem}_below_min" if low else f"{stem}_above_max",)


@pytest.mark.parametrize("name", NAMES)
@given(value=ODD)
def test_absent_and_odd_values_are_invalid_for_every_metric(name, value):
    metric = metric_of(name)
    assert gate_reasons(a_gate(structure={metric: value}), guards(**{name: 0.5}), NOW) == (f"{STEM.get(metric, metric)}_invalid",)
    assert gate_reasons(a_gate(structure=None), guards(**{name: 0.5}), NOW) == (f"{STEM.get(metric, metric)}_invalid",)


TIGHTER = {"hazard_max": -1, "hazard_min": 1, "min_repetitions": 1, "min_regime_confidence": 1}


@given(st.data())
def test_a_tighter_rule_never_admits_more(data):
    values = data.draw(st.dictionaries(st.sampled_from(METRICS), REAL | ODD))
    gate = a_gate(structure=values, repetitions=data.draw(st.integers(0, 5) | ODD), hazard=data.draw(REAL), **{"lambda": data.draw(REAL | ODD)})
    loose = {n: data.draw(st.none() | REAL) for n in NAMES}
    tight = {n: (data.draw(st.none() | REAL) if v is None else v + data.draw(st.floats(0, 1))*(1 if n.startswith("min_") else -1)) for n, v in loose.items()}
    plain = {"hazard_max": data.draw(st.none() | REAL), "hazard_min": data.draw(st.none() | REAL), "min_repetitions": data.draw(st.integers(1, 3)),
             "min_regime_confidence": data.draw(st.floats(0, 1))}
    harder = {k: v if v is None else v + way*data.draw(st.integers(0, 2)) for (k, v), way in zip(plain.items(), TIGHTER.values())}
    a, b = rules(guards=Guards(**loose), **plain), rules(guards=Guards(**tight), **harder)
    age = data.draw(st.integers(0, 300))
    if not gate_reasons(gate, b, NOW, age):
        assert not gate_reasons(gate, a, NOW, age + data.draw(st.integers(0, 300)))


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_every_guard_that_fails_is_told_whatever_else_fails(some, others):
    def failing(names):
        return {n: (9.0 if n.startswith("min_") else -9.0) for n in names}
    few, many = gate_reasons(a_gate(), guards(**failing(some)), NOW), gate_reasons(a_gate(), guards(**failing(some | others)), NOW)
    assert set(few) <= set(many) and len(few) == len(some) and len(set(many)) == len(many) == len(some | others)


def test_places_are_asked_in_order():
    where = {"components": {"coherence": 0.1}, "structure": {"coherence": 0.2}, "metrics": {"coherence": 0.3}, "coherence": 0.4}
    for threshold, gone in ((0.1, None), (0.2, "components"), (0.3, "structure"), (0.4, "metrics")):
        where.pop(gone, None)
        assert gate_reasons(a_gate(**{"structure": None, **where}), guards(min_coherence=threshold), NOW) == ()
        assert gate_reasons(a_gate(**{"structure": None, **where}), guards(min_coherence=threshold + 0.01), NOW)


def test_a_null_in_one_place_is_looked_for_in_the_next():
    assert gate_reasons(a_gate(components={"coherence": None}, structure={"coherence": 0.5}), guards(min_coherence=0.5), NOW) == ()


@pytest.mark.parametrize("age_ms, reasons", [(0, ()), (180_000, ()), (180_001, ("gate_stale",)), (-5_000, ()), (-5_001, ("gate_future_ts",))])
def test_age_counts_from_the_close_of_the_last_candle(age_ms, reasons):
    assert gate_reasons(a_gate(asof_ms=NOW - age_ms), rules(), NOW, 180) == reasons
    assert gate_reasons(a_gate(asof_ms=None, ts_ms=NOW - age_ms), rules(), NOW, 180) == reasons


@pytest.mark.parametrize("said", [{"asof_ms": None, "ts_ms": None}, {"asof_ms": math.nan}, {"asof_ms": "yesterday"}, {"asof_ms": True}])
def test_a_gate_without_a_time_is_refused(said):
    assert gate_reasons(a_gate(**said), rules(), NOW) == ("gate_time_invalid",)


def test_seconds_taken_for_milliseconds_are_stale():
    assert gate_reasons(a_gate(asof_ms=NOW//1000), rules(), NOW) == ("gate_stale",)


@pytest.mark.parametrize("gate", [None, {}, [], "gate", 1])
def test_no_gate(gate):
    assert gate_reasons(gate, rules(), NOW) == ("missing_payload",)


@pytest.mark.parametrize("admit", [False, None, 0, "true", "1", [], 2])
def test_only_a_clear_yes_admits(admit):
    assert gate_reasons(a_gate(admit=admit), rules(), NOW) == ("admit_false",)
    assert gate_reasons(a_gate(admit=1), rules(), NOW) == ()


@pytest.mark.parametrize("said", [{"reasons": ["hazard_fallback_requested"]}, {"reasons": "x|hazard_fallback_requested"},
                                  {"components": {"fallback_mode": "optical_required"}}])
def test_a_requested_fallback_admits_nothing(said):
    assert gate_reasons(a_gate(**said), rules(), NOW) == ("hazard_fallback_requested",)


CASES = [
    ({"hazard_max": 0.42}, {}, ()), ({"hazard_max": 0.41}, {}, ("hazard_exceeds_max",)), ({"hazard_max": 0.41}, {"lambda": 0.1}, ()),
    ({"hazard_max": 0.41}, {"lambda": None}, ("hazard_exceeds_max",)), ({"hazard_max": 0.41}, {"lambda": None, "hazard": None}, ("hazard_invalid",)),
    ({"hazard_max": 0.41}, {"lambda": math.nan}, ("hazard_invalid",)), ({"hazard_min": 0.43}, {}, ("hazard_below_min",)),
    ({"min_repetitions": 3}, {}, ()), ({"min_repetitions": 4}, {}, ("repetitions_short",)), ({}, {"repetitions": None}, ("repetitions_invalid",)),
    ({"semantic_filter": ("highly_stable", "a", "b")}, {}, ("semantic_filter_missing:a,b",)), ({"semantic_filter": ("a",)}, {"semantic_tags": None}, ("semantic_filter_missing:a",)),
    ({"regime_filter": ("trend_bull",)}, {}, ()), ({"regime_filter": ("trend_bear",)}, {}, ("regime_filtered",)), ({"regime_filter": ("x",)}, {"regime": None}, ("regime_missing",)),
    ({"regime_filter": ("neutral",)}, {"regime": "neutral"}, ()), ({"min_regime_confidence": 0.7}, {}, ()), ({"min_regime_confidence": 0.71}, {}, ("regime_confidence_low",)),
    ({"min_regime_confidence": 0.1}, {"regime": {"label": "x"}}, ("regime_confidence_missing",)), ({"min_regime_confidence": 0.1}, {"regime": {"label": "x", "confidence": math.nan}}, ("regime_confidence_missing",)),
    ({}, {"bundle_blocks": ["CB002", {"id": "CB003"}]}, ("bundle_block:CB002", "bundle_block:CB003")), ({"require_st_peak": True}, {}, ("st_no_peak_reversal",)),
    ({"require_st_peak": True}, {"st_peak": True}, ()), ({}, {"instrument": "GBP_USD"}, ("instrument_mismatch",)),
]


@pytest.mark.parametrize("rule, said, reasons", CASES)
def test_each_other_reason(rule, said, reasons):
    assert gate_reasons(a_gate(**said), rules(**rule), NOW) == reasons


@given(st.recursive(ODD | st.text(max_size=5) | st.integers(), lambda x: st.lists(x, max_size=3) | st.dictionaries(
    st.sampled_from(["structure", "components", "regime", "label", "coherence", "reasons", "bundle_blocks", "semantic_tags", "asof_ms", "admit"]), x, max_size=6), max_leaves=20))
def test_no_document_makes_it_raise_or_admit(junk):
    everything = replace(guards(min_coherence=0.1), hazard_max=1.0, semantic_filter=("a",), regime_filter=("b",), min_regime_confidence=0.1)
    assert gate_reasons(junk, everything, NOW)
