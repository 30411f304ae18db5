"""The archived weekly study: golden cells, the price rule, layout and strict JSON."""
import json
import math

import numpy as np
import polars as pl
import pytest
from deskbook.core.clock import fixed_clock, to_ms
from deskbook.core.errors import BadInput, DataError, NotFound
from deskbook.core.files import read_json, strict_json
from deskbook.gates.payload import read_gates_jsonl
from deskbook.studies.costs import cost_model
from deskbook.studies.legacy import (
    COST_KEYS, GROSS_KEYS, LegacyConfig, auroc_admit, carried_close, hazard_buckets, holm, leaky_deciles, legacy_study, normal_p, read_embedded,
    regime_summary, with_embedded)

MIN = 60_000
TESTABLE = ("AUD_USD", "EUR_USD", "GBP_USD", "NZD_USD", "USD_CAD")  # at 5 minutes these need no price after the window


@pytest.fixture(scope="module")
def golden(shared_data):
    g = shared_data / "golden-study"
    gates = with_embedded(read_gates_jsonl(g / "gates_2025-11-03_to_2025-11-10.jsonl").gates, g / "gates_with_roc.jsonl")
    return gates, read_json(g / "outcome_weekly_costs.json"), read_json(g / "outcome_weekly_2025-11-03_to_2025-11-10.json")


@pytest.fixture(scope="module")
def with_costs(golden):
    gates, want, _ = golden
    return legacy_study(gates, None, LegacyConfig(cost=costs_of(want)), instruments=sorted(want["instruments"]), clock=fixed_clock(want["generated_at"]))


@pytest.fixture(scope="module")
def gross(golden):
    return legacy_study(golden[0], None, LegacyConfig(cost="none"))


def differences(want, got, path=""):
    if isinstance(want, dict) and isinstance(got, dict):
        if set(want) != set(got):
            yield path, "keys", set(want) ^ set(got)
        for k in want.keys() & got.keys():
            yield from differences(want[k], got[k], f"{path}/{k}")
    elif isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        for i, (a, b) in enumerate(zip(want, got)):
            yield from differences(a, b, f"{path}/{i}")
    elif isinstance(want, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
        if not abs(want - got) <= 1e-9 * max(1, abs(want)):
            yield path, want, got
    elif want != got:
        yield path, want, got


def costs_of(evidence):
    return cost_model("median_spread_plus_half_slip", spreads={i: c["5"]["median_spread"] for i, c in evidence["instruments"].items()})


@pytest.mark.data
def test_five_minute_cells_with_costs(golden, with_costs):
    _, want, _ = golden
    got = with_costs
    assert {k: v for k, v in got.items() if k not in ("instruments", "generated_at")} == {k: v for k, v in want.items() if k not in ("instruments", "generated_at")}
    tested = [i for i in TESTABLE if i in want["instruments"]]
    assert {"AUD_USD", "EUR_USD", "GBP_USD"} <= set(tested)
    for i in tested:
        assert set(got["instruments"][i]["5"]) == set(COST_KEYS)
        found = [d for d in differences(want["instruments"][i]["5"], got["instruments"][i]["5"]) if not d[0].startswith("/p_value_holm")]
        assert not found, (i, found[:3])


@pytest.mark.data
def test_five_minute_cells_gross(golden, gross):
    _, _, want = golden
    got = gross
    for i in (i for i in TESTABLE if i in want["instruments"]):
        assert set(got["instruments"][i]["5"]) == set(GROSS_KEYS)
        assert not list(differences(want["instruments"][i]["5"], got["instruments"][i]["5"]))
    assert set(got) == set(want)


@pytest.mark.data
def test_costs_in_every_cell_and_holm_in_every_family(golden, with_costs):
    _, want, _ = golden
    got = with_costs
    for i, cells in want["instruments"].items():
        for h, cell in cells.items():
            assert got["instruments"][i][h]["avg_cost_pct"] == pytest.approx(cell["avg_cost_pct"], abs=1e-12)
            assert got["instruments"][i][h]["count"] == cell["count"]
        np.testing.assert_allclose(holm([c["p_value"] for c in cells.values()]), [c["p_value_holm"] for c in cells.values()], rtol=0, atol=1e-15)


@pytest.mark.data
def test_longer_horizons_differ_only_by_the_prices_after_the_window(golden, gross):
    """A few samples at the end of the week carry the last price in the archive's table and a real one in its study."""
    _, _, want = golden
    got = gross
    for i, cells in want["instruments"].items():
        for h, cell in cells.items():
            g = got["instruments"][i][h]
            off = abs(cell["avg_return_pct"] - g["avg_return_pct"]) * cell["count"]
            assert cell["count"] == g["count"] and off < 0.2 * (int(h) // 16 + 1), (i, h, off)


@pytest.mark.data
def test_evidence_is_strict_json_and_the_same_twice(golden, with_costs):
    gates, want, _ = golden
    again = legacy_study(gates.sample(fraction=1, shuffle=True, seed=1), None, LegacyConfig(cost=costs_of(want)), sorted(want["instruments"]), fixed_clock(want["generated_at"]))
    assert strict_json(again) == strict_json(with_costs)
    assert json.loads(strict_json(again))["horizons"] == [5, 15, 30, 60, 240]


@pytest.mark.data
def test_regimes(golden):
    gates, _, _ = golden
    out = regime_summary(gates)
    assert set(out["regimes"]) == {"mean_revert", "neutral", "chaotic"}
    assert sum(r["5"]["count"] for r in out["regimes"].values()) == len(gates)
    part = gates.filter(regime="chaotic")["forward_pct_60"]
    assert out["regimes"]["chaotic"]["60"] == {"count": len(part), "avg_roc_pct": pytest.approx(part.mean()), "positive_pct": pytest.approx((part > 0).mean())}


# ---- with prices


def market(n=600, hole=(), name="EUR_USD", seed=0):
    rng = np.random.default_rng(seed)
    m = np.array([i for i in range(n) if i not in hole])
    p = (1.1 * np.exp(np.cumsum(rng.normal(0, 1e-4, n))))[m]
    time = pl.Series("time", to_ms("2025-11-04") + MIN * m).cast(pl.Datetime("ms", "UTC"))
    return pl.DataFrame({"instrument": name, "time": time, "close": p, "bid_open": p, "ask_open": p + 1e-4, "bid_close": p - 5e-5, "ask_close": p + 5e-5})


def gates_of(candles, every=16, seed=1):
    rng, g = np.random.default_rng(seed), candles[63::every]
    return g.select("instrument", "time").with_columns(hazard=pl.Series(rng.uniform(0.4, 0.6, len(g)).round(2)), coherence=0.02,
        admit=pl.Series(rng.random(len(g)) < 0.9), reasons=pl.Series([["x"]] * len(g)))


def test_prices_are_the_close_at_the_target_or_the_last_before_it():
    c = market(hole={84, 85, 200})
    t = c["time"].to_physical().to_numpy()
    by_minute = dict(zip(((t - t[0]) // MIN).tolist(), c["close"].to_list()))
    for minute, want in ((83, 83), (84, 83), (85, 83), (86, 86), (200, 199), (10_000, 599)):
        assert carried_close(c, np.array([t[0] + minute * MIN]))[0] == by_minute[want]


def test_a_study_on_prices_equals_arithmetic_by_hand():
    c = market(hole=set(range(300, 320)))
    g = gates_of(c)
    cell = legacy_study(g, c, LegacyConfig((15,)))["instruments"]["EUR_USD"]["15"]
    t, p = c["time"].to_physical().to_list(), c["close"].to_list()
    net, pairs = [], []
    for ts, hz in zip(g["time"].to_physical().to_list(), g["hazard"]):
        p0 = p[t.index(ts)]
        ph = p[max(i for i, x in enumerate(t) if x <= ts + 15 * MIN)]
        net.append(100 * (ph / p0 - 1) - 100 * (1e-4 * 1.5 + 1e-5) / p0)
        pairs.append((hz, net[-1]))
    n, mean = len(net), sum(net) / len(net)
    sd = (sum((x - mean) ** 2 for x in net) / (n - 1)) ** 0.5
    assert cell["count"] == n and cell["avg_return_pct"] == pytest.approx(mean, abs=1e-12)
    assert cell["median_spread"] == pytest.approx(1e-4) and cell["t_stat"] == pytest.approx(mean / (sd / n**0.5))
    assert cell["positive_pct"] == sum(x > 0 for x in net) / n
    pairs.sort()
    for k, d in enumerate(cell["hazard_deciles"]):
        part = [x for _, x in pairs[n * k // 10:n * (k + 1) // 10]]
        assert (d["decile"], d["count"]) == (k + 1, len(part)) and d["avg_return_pct"] == pytest.approx(sum(part) / len(part))
        assert d["lift_vs_overall"] == pytest.approx(d["avg_return_pct"] - mean)
    largest = [s["return_pct"] for s in cell["samples"]]
    assert len(largest) == 5 and largest == pytest.approx(sorted(net, key=abs, reverse=True)[:5])
    assert all(s["ts"].endswith("+00:00") for s in cell["samples"])


def test_admitted_or_not_every_gate_counts():
    c = market()
    g = gates_of(c)
    a = legacy_study(g, c, LegacyConfig((5,)))["instruments"]["EUR_USD"]["5"]
    b = legacy_study(g.with_columns(admit=True), c, LegacyConfig((5,)))["instruments"]["EUR_USD"]["5"]
    assert a["count"] == b["count"] == len(g) and a["t_stat"] == b["t_stat"] and b["auroc_admit"] in (None, 0.5)


def test_the_pieces_at_their_edges():
    assert normal_p(9) == 0.0 and normal_p(0) == 1.0
    assert holm([]) == [] and holm([None]) == [None] and holm([0.6, 0.7]) == [1.0, 1.0]
    assert auroc_admit(np.array([True, False, True, False]), np.array([1.0, -1, 1, -1])) == 1.0
    assert list(hazard_buckets(np.array([0.0, 0.2, 0.4, 0.6, 1.0]), np.zeros(5))) == ["< 0.20", "< 0.40", "< 0.60", "< 0.80", "< 1.20"]
    assert [d["decile"] for d in leaky_deciles(np.arange(3.0), np.arange(3.0))] == [4, 7, 10]
    flat = market().with_columns(close=pl.lit(1.1))
    cell = legacy_study(gates_of(flat), flat, LegacyConfig((5,), "none"))["instruments"]["EUR_USD"]["5"]
    assert cell["avg_positive_return_pct"] is None and cell["avg_negative_return_pct"] == 0.0
    strict_json(cell)


def test_a_constant_tape_has_no_test_and_holm_ignores_it():
    flat = market().with_columns(close=pl.lit(1.1))
    cells = legacy_study(gates_of(flat), flat, LegacyConfig((5, 15)))["instruments"]["EUR_USD"]
    assert all(c["t_stat"] is None and c["p_value_holm"] is None for c in cells.values())


def test_the_order_of_candles_and_holes_in_gates_do_not_matter():
    c = market()
    g = gates_of(c).with_columns(pl.when(pl.int_range(pl.len()) % 5 == 0).then(None).otherwise(pl.col(x)).alias(x) for x in ("hazard", "admit"))
    want = legacy_study(g, c, LegacyConfig((5, 60)), clock=fixed_clock("2025-11-10"))
    broken = pl.concat([c, c[300:310].with_columns(pl.col("time") + pl.duration(seconds=30), close=pl.Series([0.0, -1.0, math.nan, math.inf, None] * 2))])
    assert legacy_study(g, broken.sample(fraction=1, shuffle=True, seed=2), LegacyConfig((5, 60)), clock=fixed_clock("2025-11-10")) == want
    cell = want["instruments"]["EUR_USD"]["5"]
    strict_json(cell)
    assert cell["count"] == len(g) and cell["avg_hazard"] == pytest.approx(g["hazard"].mean()) and sum(b["count"] for b in cell["hazard_buckets"].values()) == g["hazard"].count()


def test_empty_instruments_get_a_note():
    c = market()
    out = legacy_study(gates_of(c), c, LegacyConfig((5,)), instruments=["EUR_USD", "GBP_USD"])["instruments"]
    assert out["GBP_USD"] == {"note": "no gates in the window"} and out["EUR_USD"]["5"]["count"] == 34
    other = legacy_study(gates_of(c), c.with_columns(instrument=pl.lit("USD_JPY")), LegacyConfig((5,)))["instruments"]
    assert other["EUR_USD"] == {"note": "no candles for the gates"}


def test_bad_input(tmp_path):
    c = market()
    with pytest.raises(NotFound, match="with_embedded"):
        legacy_study(gates_of(c))
    with pytest.raises(BadInput, match="quoted"):
        legacy_study(gates_of(c), c, LegacyConfig(cost="quoted"))
    with pytest.raises(DataError, match="spread of EUR_USD"):
        legacy_study(gates_of(c), c.select("instrument", "time", "close"))
    with pytest.raises(NotFound, match="60 minutes"):
        regime_summary(gates_of(c), (60,))
    bad = tmp_path / "gates.jsonl"
    good = '{"instrument": "eur_usd", "ts": "2025-11-04T00:00:00Z", "price_close": 1.1, "roc_forward_pct": {"5": 0.01, "15": null}}\n'
    bad.write_text(good + '\n{"instrument": "EUR_USD"}\n')
    with pytest.raises(DataError, match=r"gates.jsonl line 3"):
        read_embedded(bad)
    bad.write_text(good)
    frame = read_embedded(bad)
    assert frame.row(0)[0] == "EUR_USD" and frame["forward_pct_15"].null_count() == 1
