"""Tags: the fixed rule, trailing thresholds, and warnings about words that say nothing."""
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskbook.gates.engine import build_gates
from deskbook.gates.settings import GateSettings
from deskbook.gates.tags import TAGS, TagMemory, TagThresholds, push_tags, semantic_tags, tag_gates, tag_prevalence, tag_values
from deskbook.market.simulated import simulate_candles


@pytest.mark.parametrize("tag, inside, outside", [
    ("highly_stable", {"coherence": 0.7, "stability": 0.7}, {"coherence": 0.7, "stability": 0.69}),
    ("strengthening_structure", {"coherence": 0.1, "stability": 0.1, "coherence_delta": 1e-9}, {"coherence": 0.1, "coherence_delta": 1.0}),
    ("high_rupture_event", {"rupture": 0.4}, {"rupture": 0.39}),
    ("chaotic_price_action", {"entropy": 0.9}, {"entropy": 0.89}),
    ("low_hazard_environment", {"hazard": 0.1}, {"hazard": 0.11, "lambda": 0.0}),
    ("improving_stability", {"lambda_slope": -1e-9}, {"lambda_slope": 0.0})])
def test_each_tag_begins_where_it_should(tag, inside, outside):
    assert tag in semantic_tags(inside) and tag not in semantic_tags(outside)


def test_fallbacks_of_entropy_and_hazard():
    assert semantic_tags({"coherence": 0.05}) == ["chaotic_price_action"]
    assert semantic_tags({"lambda": 0.1, "hazard": None}) == ["low_hazard_environment"]


def test_order_is_fixed():
    everything = semantic_tags({"coherence": 0.9, "stability": 0.9, "rupture": 0.9, "entropy": 0.95, "hazard": 0.05, "coherence_delta": 1, "lambda_slope": -1})
    assert everything == list(TAGS)


def test_structure_is_read_first_and_booleans_are_no_numbers():
    assert tag_values({"structure": {"coherence": 0.2}, "coherence": 0.9, "components": {"hazard": 0.3}, "metrics": {"hazard": 0.4, "rupture": True}}) == {"coherence": 0.2, "hazard": 0.3}


GATES = st.lists(st.tuples(st.integers(0, 63), st.integers(0, 64)), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(GATES, st.integers(0, 120), st.integers(5, 40))
def test_trailing_tags_are_the_rule_with_sorted_thresholds(rows, cut, size):
    s = GateSettings(max_samples=size, warmup_samples=4)
    hazard = np.array([w / 63 for w, _ in rows])
    coherence = np.array([abs(u - 32) / 32 for _, u in rows])
    ranked = np.column_stack([coherence, 1 - hazard, hazard, 1 - coherence, hazard])
    memory = TagMemory(s)
    parts = [push_tags(memory, ranked[a:b], hazard[a:b]).lists().to_list() for a, b in ((0, cut), (cut, len(rows)))]
    got = parts[0] + parts[1]
    for i in range(4, len(rows)):
        old = np.sort(ranked[max(0, i - size):i], axis=0)
        high, low = old[int(0.8 * (len(old) - 1))], old[int((1 - 0.8) * (len(old) - 1))]
        values = dict(zip(("coherence", "stability", "rupture", "entropy", "hazard"), ranked[i]))
        values |= {"coherence_delta": coherence[i] - coherence[i - 1], "lambda_slope": hazard[i] - hazard[i - 1]}
        assert got[i] == semantic_tags(values, TagThresholds(high[0], high[1], high[2], high[3], low[4]))


def test_before_the_warm_up_only_changes_speak():
    g = build_gates(simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-05"), GateSettings(warmup_samples=64))
    early = {t for tags in g["semantic_tags"][:64] for t in tags}
    assert early == {"strengthening_structure", "improving_stability"} and g["semantic_tags"][0].to_list() == []


def test_trailing_tags_speak_where_fixed_ones_are_silent():
    g = build_gates(simulate_candles(["EUR_USD", "USD_JPY"], "2025-11-03", "2025-11-14"))
    assert tag_prevalence(g)["warning"].to_list() == [""] * 6
    fixed = tag_prevalence(tag_gates(g, fixed=TagThresholds()))
    assert dict(zip(fixed["tag"], fixed["warning"]))["chaotic_price_action"] or dict(zip(fixed["tag"], fixed["warning"]))["highly_stable"]
    assert tag_gates(g).select("instrument", "time", "semantic_tags").equals(g.select("instrument", "time", "semantic_tags"))


def test_a_tag_that_is_always_set_is_reported():
    g = pl.DataFrame({"semantic_tags": [["high_rupture_event"]] * 200})
    p = tag_prevalence(g)
    assert p.row(2) == ("high_rupture_event", 200, 1.0, "set on more than 99 % of gates")
    assert p["warning"][0] == "set on less than 1 % of gates"
    assert tag_prevalence(g[:0]).height == 6


@pytest.mark.data
def test_on_the_archived_week_the_fixed_thresholds_are_constants(shared_data):
    raw = pl.read_csv(shared_data / "golden-engine" / "evidence" / "week_2025-11-03_gates.csv")
    g = raw.select("instrument", "coherence", "stability", "entropy", "hazard", time="ts_ms", rupture="hazard", **{"lambda": "hazard"})
    fixed, trailing = tag_prevalence(tag_gates(g, fixed=TagThresholds())), tag_prevalence(tag_gates(g))
    share = dict(zip(fixed["tag"], fixed["share_frac"]))
    assert (share["high_rupture_event"], share["chaotic_price_action"], share["highly_stable"], share["low_hazard_environment"]) == (1, 1, 0, 0)
    assert trailing["share_frac"].is_between(0.01, 0.99).all()
