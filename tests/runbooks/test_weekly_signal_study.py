"""The weekly study as a scheduler runs it, on real candles: counts, verdicts, dropped samples, and the same evidence twice."""
import json

import polars as pl
import pytest

from deskbook.core.errors import BadInput
from deskbook.core.files import read_json, strict_json
from deskbook.ops.evidence import comparable
from deskbook.stores.lake import Lake

WEEKLY = "studies/weekly_signal_study"
FEW = dict(n_bootstrap=300)


def study_of(result):
    return read_json(result.folder / "outcome_weekly_costs.json")


def without_times(study):
    return strict_json({k: v for k, v in study.items() if k != "generated_at"})


@pytest.mark.data
@pytest.mark.parametrize(
    ("venue", "start", "end", "gates", "reasons", "cost_source"),
    [
        ("oanda", "2014-05-05", "2014-05-12", {"EUR_USD": 451, "XAU_USD": 439}, {"closure": 108, "stale_entry": 3}, "quotes"),
        ("fxcm", "2014-05-05", "2014-05-12", {"EUR_USD": 458}, {"closure": 62}, "quotes"),
        ("fxcm", "2013-02-04", "2013-02-11", {"USD_JPY": 451}, {"closure": 22}, "quotes"),
        ("perp", "2022-01-10", "2022-01-17", {"BTC-PERP": 630}, {}, "fallback_spread_bp"),
    ],
    ids=["oanda-eur-gold", "fxcm-eur", "fxcm-jpy", "btc-perp"],
)
def test_a_real_week(run, real_lake, venue, start, end, gates, reasons, cost_source):
    result = run(WEEKLY, real_lake, venue=venue, start=start, end=end, **FEW)
    evidence, study = result.evidence, study_of(result)
    assert (result.exit_code, evidence.verdict, result.problems) == (0, "PASS", ())
    assert all(c.passed for c in evidence.checks) and evidence.numbers["gates"] == sum(gates.values())
    assert {k: v for k, v in study["dropped"].items() if v} == reasons
    assert study["source"] == f"{venue} file" and f"{venue} file" in evidence.title
    assert study["multiplicity"]["primary"]["family_size"] == 10 * len(gates) == evidence.numbers["tests"]
    assert evidence.numbers["tests that survive Holm"] == 0, "these weeks hold no edge that survives its costs"
    for name, n in gates.items():
        assert study["costs"][name]["source"] == cost_source
        cells = study["instruments"][name]
        assert all(cell["count"] + sum(cell["dropped"].values()) == n for cell in cells.values())
        assert all(0 <= side["p_one_sided_net"] <= side["p_holm_family"] <= 1 for c in cells.values() for side in (c, c["short"]))
    assert {p.name for p in result.folder.iterdir()} >= {"report.html", "report.ipynb", "evidence.json", "log.jsonl", "announcement.txt"}


@pytest.mark.data
def test_two_runs_give_the_same_evidence_and_publishing_loses_nothing(run, real_lake, tmp_path):
    same = dict(venue="fxcm", start="2013-02-04", end="2013-02-11", **FEW)
    lake = Lake(tmp_path / "copy")
    lake.write_candles(Lake(real_lake).candles(["USD_JPY"], venue="fxcm", with_source=True), "fxcm", source="fxcm file")
    first, second = (run(WEEKLY, lake.url, mode="live", **same) for _ in range(2))
    assert strict_json(comparable(first.evidence)) == strict_json(comparable(second.evidence))
    assert without_times(study_of(first)) == without_times(study_of(second))
    shelf = tmp_path / "reports" / "evidence"
    assert without_times(read_json(shelf / "outcome_weekly_costs.json")) == without_times(study_of(second))
    assert len(list((shelf / "archive").glob("outcome_weekly_2013-02-04_to_2013-02-11_*.json"))) == 2, "each published study stays in the archive"
    assert [json.loads(line)["week"] for line in (shelf / "roster.jsonl").read_text().splitlines()][-1] == "2013-W06"
    assert Lake(lake.url).gates(["USD_JPY"], venue="fxcm").height == 451, "a live run stores the gates"


def test_a_dry_run_touches_only_its_own_folder(run, small_lake, tmp_path):
    before = sorted(p for p in (tmp_path / "lake").rglob("*.parquet"))
    result = run(WEEKLY, small_lake, start="2025-11-04", end="2025-11-06", **FEW)
    assert result.exit_code == 0 and "simulated market" in result.evidence.title
    assert sorted(p for p in (tmp_path / "lake").rglob("*.parquet")) == before
    assert not (tmp_path / "reports" / "evidence").exists()


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        (dict(instruments=["EURUSD_"]), 1, "the lake holds no EURUSD_"),
        (dict(start="2019-01-01", end="2019-01-08"), 1, "no instrument has candles"),
        (dict(venue="oandaa"), 1, "the lake has no venue"),
    ],
    ids=["unknown-instrument", "empty-window", "unknown-venue"],
)
def test_bad_input_says_what_is_wrong(run, small_lake, parameters, code, words):
    result = run(WEEKLY, small_lake, **parameters)
    assert result.exit_code == code
    assert words in result.evidence.reason
    assert (result.folder / "report.ipynb").is_file(), "the failed notebook is kept"


def test_a_week_that_ends_before_it_starts_is_refused_before_a_kernel(run, small_lake, tmp_path):
    with pytest.raises(BadInput, match=r"start 2025-11-06 is not before end 2025-11-04\.(.|\n)*n_bootstrap"):
        run(WEEKLY, small_lake, start="2025-11-06", end="2025-11-04")
    assert not (tmp_path / "reports").exists()


def test_fewer_than_64_candles_fail_the_check_of_that_instrument_only(run, small_lake):
    lake = Lake(small_lake)
    few = Lake(small_lake).candles(["EUR_USD"], venue="simulated").tail(40).with_columns(instrument=pl.lit("GBP_USD"))
    lake.write_candles(few, "simulated", source="simulated market")
    result = run(WEEKLY, small_lake, start="2025-11-04", end="2025-11-06", **FEW)
    assert (result.exit_code, result.evidence.verdict) == (1, "FAIL")
    failed = {c.name: c.detail for c in result.evidence.checks if not c.passed}
    assert failed == {"GBP_USD has gates": "only 40 candles; a gate needs 64"}
    assert {"EUR_USD", "USD_JPY"} <= set(study_of(result)["instruments"])


def test_an_old_lake_is_told_and_simulated_weeks_stay_among_themselves(run, small_lake, tmp_path):
    result = run(WEEKLY, small_lake, mode="live", **FEW)
    assert (result.exit_code, result.evidence.verdict) == (0, "PASS")
    assert any("The newest candle is of 2025-11-05T23:59:00Z" in n for n in result.evidence.notes)
    shelf = tmp_path / "reports" / "evidence"
    assert (shelf / "roster_simulated.jsonl").is_file() and not (shelf / "roster.jsonl").exists()
    assert read_json(shelf / "outcome_weekly_costs.json")["source"] == "simulated market"
