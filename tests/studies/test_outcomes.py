"""The outcome study against a slow twin, against the archive, and at its edges."""
import json
import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from deskbook.core.clock import fixed_clock, to_datetime
from deskbook.core.errors import BadInput, DataError, NotFound
from deskbook.core.files import strict_json
from deskbook.gates.engine import build_gates
from deskbook.market.simulated import PlantedEdge, simulate_candles
from deskbook.studies.cells import base_rates, group_tests, horizon_bootstrap
from deskbook.studies.costs import cost_model
from deskbook.studies.forward import forward_returns
from deskbook.studies.inference import hac_se, mean_test, time_buckets
from deskbook.studies.outcomes import StudyConfig, evidence_of, gates_digest, primary_tests, run_outcome_study

PAIRS = ("EUR_USD", "USD_JPY")
START, END = to_datetime("2024-03-03"), to_datetime("2024-03-10")
CONFIG = StudyConfig(start=START, end=END, n_bootstrap=200)


@pytest.fixture(scope="module")
def candles():
    return simulate_candles(PAIRS, "2024-03-03", "2024-03-11", seed=5)


@pytest.fixture(scope="module")
def gates(candles):
    return build_gates(candles)


@pytest.fixture(scope="module")
def study(gates, candles):
    return run_outcome_study(gates, candles, CONFIG, clock=fixed_clock("2024-03-11"), provenance={"source": "simulated"})


@pytest.fixture(scope="module")
def evidence(study):
    return json.loads(strict_json(study.to_evidence()))


def nulls_and_nans(value):
    if isinstance(value, dict):
        return [x for v in value.values() for x in nulls_and_nans(v)]
    if isinstance(value, list):
        return [x for v in value for x in nulls_and_nans(v)]
    return [value] if isinstance(value, float) and not math.isfinite(value) else []


def test_evidence_is_strict_and_has_every_key(evidence):
    assert not nulls_and_nans(evidence)
    for key in ("schema_version", "generated_at", "window", "lookback_minutes", "horizons", "granularity", "cost_model", "commission_pips", "slippage_multiplier",
                "run_mode", "gates_sha256", "calibrator", "dropped", "multiplicity", "population", "costs", "source"):
        assert key in evidence, key
    assert evidence["multiplicity"]["primary"] == {"method": "holm", "family_size": 20, "alpha": 0.05}
    cell = evidence["instruments"]["EUR_USD"]["60"]
    legacy = {"count", "avg_return_pct", "median_return_pct", "positive_pct", "avg_positive_return_pct", "avg_negative_return_pct", "avg_hazard", "avg_cost_pct", "hazard_buckets",
              "hazard_deciles", "overall_avg_return_pct", "auroc_admit", "t_stat", "p_value", "p_value_holm", "median_spread", "samples"}
    sound = {"avg_return_bp", "n_eff", "se_hac_bp", "ci95_bp", "p_one_sided_net", "p_holm_family", "auroc_direction", "auroc_abs_move", "auroc_ci95", "mfe_bp", "mae_bp", "short",
             "by_regime", "by_tag", "by_admit", "by_hour", "mde_bp", "base_positive_frac", "dropped"}
    assert legacy | sound <= set(cell) and {"avg_return_bp", "p_holm_family", "ci95_bp", "mde_bp"} <= set(cell["short"])


def test_two_runs_are_byte_identical_apart_from_the_clock(gates, candles, evidence):
    again = run_outcome_study(gates.sample(fraction=1, shuffle=True, seed=1), candles, CONFIG, clock=fixed_clock("2025-01-01"), provenance={"source": "simulated"}).to_evidence()
    assert again.pop("generated_at") != evidence["generated_at"]
    assert strict_json(again) == strict_json({k: v for k, v in evidence.items() if k != "generated_at"})
    other = run_outcome_study(gates, candles, replace(CONFIG, seed=1)).to_evidence()
    assert other["instruments"]["EUR_USD"]["60"]["auroc_ci95"] != evidence["instruments"]["EUR_USD"]["60"]["auroc_ci95"]


def test_cells_against_a_slow_twin(gates, candles, evidence):
    inside = gates.filter((pl.col("time") >= START) & (pl.col("time") < END))
    fr = forward_returns(inside, candles, CONFIG.horizons_min, "quoted")
    for name in PAIRS:
        rows = fr.rows[name]
        for k, h in enumerate(CONFIG.horizons_min):
            cell = evidence["instruments"][name][str(h)]
            live = np.isfinite(fr.long_bp[rows, k])
            long, mid, cost = fr.long_bp[rows, k][live], fr.mid_bp[rows, k][live], fr.cost_bp[rows, k][live]
            g = fr.gates[rows].filter(live)
            assert cell["count"] == len(long) and cell["avg_return_pct"] == pytest.approx(long.mean() / 100, abs=1e-12)
            assert cell["positive_pct"] == (long > 0).mean() and cell["median_return_pct"] == pytest.approx(np.median(long) / 100)
            assert cell["se_hac_bp"] == pytest.approx(hac_se(long, max(math.ceil(h / 16), int(4 * (len(long) / 100) ** (2 / 9)))), rel=1e-6)
            taken = []
            for t in g["time"]:
                if not taken or t >= taken[-1] + timedelta(minutes=h):
                    taken.append(t)
            assert cell["n_windows"] == len(taken)
            n_eff = min(len(long), len(taken), *[long.var(ddof=1) / cell[s] ** 2 for s in ("se_hac_bp", "se_boot_bp")])
            assert cell["n_eff"] == pytest.approx(n_eff, rel=1e-6)
            assert cell["p_one_sided_net"] == pytest.approx(stats.t.sf(long.mean() / (long.std(ddof=1) / n_eff**0.5), n_eff - 1), rel=1e-5)
            assert cell["auroc_direction"] == pytest.approx(roc_auc_score(mid > 0, -g["hazard"].to_numpy()), abs=1e-7)
            assert cell["auroc_abs_move"] == pytest.approx(roc_auc_score(abs(mid) > cost, -g["hazard"].to_numpy()), abs=1e-7)
            assert cell["auroc_ci95"]["direction"][0] < cell["auroc_direction"] < cell["auroc_ci95"]["direction"][1]
            assert cell["mfe_bp"]["p50"] == pytest.approx(np.median(fr.mfe_bp[rows, k][live]), rel=1e-7)
            assert cell["ci95_bp"][0] < cell["avg_return_bp"] < cell["ci95_bp"][1]


def test_holm_is_one_family_over_pairs_horizons_and_sides(study):
    p = study.cells["p_one_sided_net"].to_numpy()
    assert len(p) == 20
    assert study.cells["p_holm_family"].to_numpy() == pytest.approx(multipletests(p, method="holm")[1])


def test_splits_are_parts_of_their_cell_and_bh_is_per_kind(study, evidence):
    for kind in ("regime", "admit", "hour"):
        sums = study.splits.filter(pl.col("kind") == kind).group_by("instrument", "horizon_min", "side").agg(pl.col("count").sum())
        joined = sums.join(study.cells, on=["instrument", "horizon_min", "side"], suffix="_cell")
        assert (joined["count"] == joined["count_cell"]).all() and len(joined) == 20
        part = study.splits.filter(pl.col("kind") == kind, pl.col("p_one_sided_net").is_not_null())
        assert part["p_bh"].to_numpy() == pytest.approx(multipletests(part["p_one_sided_net"].to_numpy(), method="fdr_bh")[1])
        assert evidence["multiplicity"]["exploratory"][kind]["family_size"] == len(part)
    row = study.splits.filter(pl.col("kind") == "regime", pl.col("side") == "short").row(0, named=True)
    told = evidence["instruments"][row["instrument"]][str(row["horizon_min"])]["by_regime"][row["level"]]
    assert told["short"]["avg_return_bp"] == pytest.approx(row["avg_return_bp"], rel=1e-7)


def test_primary_tests_are_those_of_the_study(study):
    p = np.array([t.p for _, t in primary_tests(study.forward, study.config).values()])
    assert (study.cells["p_one_sided_net"].to_numpy() == p.transpose(1, 0, 2).ravel()).all()


def test_a_planted_edge_is_found_and_in_the_right_direction(gates):
    up = simulate_candles(PAIRS, "2024-03-03", "2024-03-11", seed=5, edge=PlantedEdge(8.0, 60, ("EUR_USD",)))
    down = simulate_candles(PAIRS, "2024-03-03", "2024-03-11", seed=5, edge=PlantedEdge(-8.0, 60, ("EUR_USD",)))
    for candles, side in ((up, "long"), (down, "short")):
        done = run_outcome_study(build_gates(candles), candles, replace(CONFIG, splits=()))
        proven = done.cells.filter(pl.col("p_holm_family") < 0.05)
        assert set(proven["side"]) == {side} and set(proven["instrument"]) == {"EUR_USD"} and 60 in set(proven["horizon_min"])
        assert "survive Holm" in done.announce()


def test_the_future_of_the_last_exit_does_not_matter(gates, candles, evidence):
    shifted = candles.with_columns(pl.when(pl.col("time") > to_datetime("2024-03-10T23:00")).then(pl.col(c) * 1.5).otherwise(pl.col(c)).alias(c) for c in ("open", "bid_open", "ask_open", "bid_high", "bid_low", "high", "low"))
    got = run_outcome_study(gates, shifted, CONFIG, clock=fixed_clock("2024-03-11"), provenance={"source": "simulated"}).to_evidence()
    assert strict_json(got) == strict_json(evidence)


def test_old_keys_mean_what_they_meant(gates, candles):
    """Zero is no gain: it counts with the losses, as in the archive. A bucket ends where its label says."""
    still = candles.with_columns(pl.when(pl.col("time").dt.hour() % 2 == 0).then(1.1).otherwise(pl.col("open")).alias("open"))
    tied = gates.with_columns(hazard=pl.when(pl.int_range(pl.len()) % 2 == 0).then(0.6).otherwise(0.59))
    study = run_outcome_study(tied, still, replace(CONFIG, cost_model="none", splits=()))
    r = study.forward.long_bp[study.forward.rows["EUR_USD"], 0]
    r, cell = r[np.isfinite(r)] / 100, study.to_evidence()["instruments"]["EUR_USD"]["5"]
    assert (r == 0).sum() > 50 and cell["avg_negative_return_pct"] == pytest.approx(r[r <= 0].mean()) and cell["avg_positive_return_pct"] == pytest.approx(r[r > 0].mean())
    assert set(cell["hazard_buckets"]) == {"< 0.60", "< 0.80"}


def test_population_and_instruments(gates, candles):
    some = gates.with_columns(admit=pl.int_range(pl.len()) % 3 > 0)
    admitted = run_outcome_study(some, candles, replace(CONFIG, population="admitted", splits=("admit",)))
    assert admitted.gates["admit"].all() and set(admitted.splits["level"]) == {"admitted"}
    asked = run_outcome_study(some, candles, replace(CONFIG, instruments=("EUR_USD", "GBP_USD"))).to_evidence()
    assert asked["instruments"]["GBP_USD"] == {"note": "no gates in the window."} and "60" in asked["instruments"]["EUR_USD"]
    assert "USD_JPY" not in asked["instruments"], "nobody asked for it, and it has gates"
    with pytest.raises(NotFound, match="none of the"):
        run_outcome_study(some.with_columns(admit=False), candles, replace(CONFIG, population="admitted"))


@pytest.mark.parametrize("change, message", [
    ({"start": "2025-11-10", "end": "2025-11-03"}, "start before the end"), ({"start": "2024-03-10", "end": "2024-03-10"}, "start before the end"), ({"horizons_min": ()}, "rising list"),
    ({"horizons_min": (5, 5)}, "rising list"), ({"horizons_min": (0,)}, "rising list"), ({"method": "sounds"}, "Did you mean 'sound'"), ({"n_bootstrap": 10}, "100 to 100000"),
    ({"cost_model": "free"}, "cost model"), ({"splits": ("weekday",)}, "unknown"), ({"population": "none"}, "Choose from"), ({"start": "yesterday"}, "not a time"), ({"stride_min": 0}, "minutes")])
def test_wrong_parameters(change, message):
    with pytest.raises(BadInput, match=message):
        StudyConfig(**change)


def test_wrong_inputs(gates, candles):
    with pytest.raises(NotFound, match="there are no gates between 2019"):
        run_outcome_study(gates, candles, StudyConfig(start="2019-01-01", end="2019-01-08"))
    with pytest.raises(NotFound, match="no gates"):
        run_outcome_study(gates.clear(), candles)
    with pytest.raises(NotFound, match="USD_JPY"):
        run_outcome_study(gates, candles.filter(pl.col("instrument") == "EUR_USD"), CONFIG)
    with pytest.raises(BadInput, match="hazard"):
        run_outcome_study(gates.drop("hazard"), candles)
    with pytest.raises(BadInput, match="coherense"):
        run_outcome_study(gates, candles, replace(CONFIG, score="coherense"))
    bare = candles.with_columns(pl.lit(None, pl.Float64).alias(c) for c in candles.columns if c.startswith(("bid_", "ask_")))
    with pytest.raises(DataError, match="spread"):
        run_outcome_study(gates, bare, CONFIG)
    assert run_outcome_study(gates, bare, replace(CONFIG, fallback_spread_bp=1.0, splits=())).to_evidence()["costs"]["EUR_USD"]["source"] == "fallback_spread_bp"


def test_all_dropped_and_constant(gates, candles):
    last = gates.filter(pl.col("time") >= to_datetime("2024-03-08T21:40"), pl.col("time") < to_datetime("2024-03-09"))
    done = run_outcome_study(last, candles, StudyConfig(horizons_min=(60, 240), n_bootstrap=100))
    cell = json.loads(strict_json(done.to_evidence()))["instruments"]["EUR_USD"]["240"]
    assert cell["count"] == 0 and cell["avg_return_pct"] is None and "dropped (closure" in cell["note"] and done.announce().endswith("Nothing could be tested.")
    still = candles.with_columns(pl.lit(1.1).alias(c) for c in ("open", "high", "low", "close"))
    flat = run_outcome_study(gates, still, replace(CONFIG, cost_model="none")).to_evidence()
    assert not nulls_and_nans(flat) and flat["multiplicity"]["primary"]["family_size"] == 0
    assert flat["instruments"]["EUR_USD"]["60"]["p_holm_family"] is None and "nothing can be tested" in flat["instruments"]["EUR_USD"]["60"]["note"]


def test_gates_without_regime_tags_or_extras(candles, gates):
    bare = gates.select("instrument", "time", "asof", "hazard", "admit")
    done = run_outcome_study(bare, candles, CONFIG).to_evidence()
    cell = done["instruments"]["EUR_USD"]["60"]
    assert cell["by_regime"] == cell["by_tag"] == {} and cell["by_admit"] and done["run_mode"] is done["engine_mode"] is None
    holes = gates.with_columns(hazard=pl.when(pl.int_range(pl.len()) % 7 == 0).then(None).otherwise(pl.col("hazard")))
    assert run_outcome_study(holes, candles, replace(CONFIG, splits=())).to_evidence()["instruments"]["EUR_USD"]["60"]["auroc_direction"] is not None


def test_one_gate_is_no_study_and_no_crash(candles, gates):
    one = run_outcome_study(gates[:1], candles, StudyConfig(n_bootstrap=100)).to_evidence()
    assert one["instruments"]["EUR_USD"]["5"]["count"] == 1 and one["instruments"]["EUR_USD"]["5"]["p_one_sided_net"] is None


def test_digest_follows_what_matters(gates):
    assert gates_digest(gates) == gates_digest(gates.clone())
    assert gates_digest(gates) != gates_digest(gates.with_columns(hazard=pl.col("hazard") + 1e-9))


def test_base_rate_is_that_of_the_same_hours():
    t = np.arange(600) * 16 * 60_000
    hour = t // 3_600_000 % 24
    rng = np.random.default_rng(1)
    gain = np.where(hour < 12, 1.0, -1.0)[:, None] * np.array([1, -1])  # mornings rise, afternoons fall
    morning = np.where((hour < 12)[:, None], gain, np.nan)
    boot = horizon_bootstrap(rng.normal(size=600), np.zeros(600, int), time_buckets(t, 16), 15, 16, 300)
    tests = group_tests(morning + rng.normal(0, 0.01, (600, 1)), np.zeros(600, int), 1, t, boot.buckets.index, boot)
    got = base_rates(morning, np.zeros(600, int), boot.buckets.index, gain, np.zeros(600, int), boot.buckets.index, boot, tests)
    assert got.share[0] == pytest.approx([1, 0]) and got.base[0] == pytest.approx([1, 0])  # not one half, as over the day


def test_sparse_and_dense_groups_agree():
    rng = np.random.default_rng(2)
    t, x = np.arange(480) * 16 * 60_000, rng.normal(size=(480, 2))
    boot = horizon_bootstrap(x[:, 0], np.zeros(480, int), time_buckets(t, 16), 60, 16, 200)
    hour = (t // 3_600_000 % 24).astype(int)
    thin = group_tests(x, hour, 24, t, boot.buckets.index, boot)
    one = np.where(hour == 3, 0, -1)
    dense = group_tests(np.where((hour == 3)[:, None], x, np.nan), one, 1, t, boot.buckets.index, boot)
    assert thin.p[3] == pytest.approx(dense.p[0]) and thin.se_boot[3] == pytest.approx(dense.se_boot[0])
    assert mean_test(x[hour == 3, 0], int(thin.n_windows[3, 0]), se_boot=thin.se_boot[3, 0]).p == pytest.approx(thin.p[3, 0])


@pytest.mark.data
def test_legacy_method_reproduces_the_archive(shared_data):
    from deskbook.gates.payload import read_gates_jsonl
    from deskbook.studies.legacy import with_embedded

    folder = shared_data / "golden-study"
    gates = with_embedded(read_gates_jsonl(folder / "gates_2025-11-03_to_2025-11-10.jsonl").gates, folder / "gates_with_roc.jsonl")
    golden = json.loads((folder / "outcome_weekly_costs.json").read_text())
    spreads = {name: by_h["5"]["median_spread"] for name, by_h in golden["instruments"].items()}
    config = StudyConfig(method="legacy", cost_model=cost_model("median_spread_plus_half_slip", spreads=spreads))
    study = run_outcome_study(gates, pl.DataFrame(), config, clock=fixed_clock("2025-11-11"))
    got = study.to_evidence()
    assert got["horizons"] == golden["horizons"] and set(got) == set(golden)
    for name in ("AUD_USD", "EUR_USD", "GBP_USD"):
        ours, theirs = got["instruments"][name]["5"], golden["instruments"][name]["5"]
        assert set(ours) == set(theirs)
        for key in ("count", "avg_return_pct", "median_return_pct", "positive_pct", "avg_cost_pct", "t_stat", "p_value", "auroc_admit", "avg_hazard"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9, abs=1e-12), (name, key)
    assert "decide nothing" in study.announce() and evidence_of(study) == got


@pytest.mark.data
def test_real_candles_give_a_whole_study(shared_data, monkeypatch):
    from deskbook.market.samples import sample_candles

    monkeypatch.setenv("DESKBOOK_SAMPLE_CANDLES", str(shared_data / "candles"))
    candles, text = sample_candles("EUR_USD")
    days = candles["time"].dt.date().unique().sort()
    candles = candles.filter(pl.col("time").dt.date() <= days[min(7, len(days) - 1)])
    done = run_outcome_study(build_gates(candles), candles, StudyConfig(n_bootstrap=200))
    cell = done.to_evidence()["instruments"]["EUR_USD"]["60"]
    assert "imulated" not in text and cell["count"] > 100 and cell["n_eff"] < cell["count"] / 3 and 0 < cell["avg_cost_bp"] < 10


def test_what_the_weekly_study_knows_of_its_gates_is_in_the_evidence(gates, candles):
    from deskbook.studies.weekly import WeeklyParameters
    known = WeeklyParameters(stride=8).provenance("simulated market", "simulated")
    got = run_outcome_study(gates, candles, replace(CONFIG, splits=()), provenance=known).to_evidence()
    assert (got["run_mode"], got["engine_mode"], got["source"], got["venue"]) == ("isolation", "sound", "simulated market", "simulated")
    assert got["calibrator"] == {"percentile": 0.95, "buffer": 2048, "cap": 1.0, "rule": "prior"}
