"""The backfill runbook: what it writes, what it leaves alone, and that streaming the same candles gives the same gates."""
import pytest

from deskbook.gates.engine import build_gates
from deskbook.gates.payload import read_gates_jsonl
from deskbook.gates.settings import GateSettings
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake

HISTORY = "backfills/gate_history"


@pytest.mark.data
def test_live_writes_gates_and_export(run, real_lake, tmp_path):
    lake = Lake(tmp_path / "copy")
    candles = Lake(real_lake).candles(["EUR_USD"], venue="oanda", with_source=True)
    lake.write_candles(candles, "oanda", source="oanda file")
    out = tmp_path / "gates.jsonl"
    result = run(HISTORY, lake.url, start="2014-05-05", end="2014-05-12", mode="live", export=str(out))
    assert (result.exit_code, result.evidence.verdict) == (0, "PASS")
    gates = lake.gates(["EUR_USD"], venue="oanda")
    assert gates.height == result.evidence.numbers["gates"] == 451
    read = read_gates_jsonl(out)
    assert read.bad_lines == [] and read.gates["hazard"].to_list() == gates["hazard"].to_list()
    again = build_gates(candles.drop("source"), GateSettings())
    assert again.filter(again["time"].is_in(gates["time"].implode()))["hazard_threshold"].to_list() == gates["hazard_threshold"].to_list()


def test_dry_run_writes_nothing(run, small_lake, tmp_path):
    before = sorted((tmp_path / "lake").rglob("*.parquet"))
    result = run(HISTORY, small_lake, start="2025-11-04", end="2025-11-06")
    assert (result.exit_code, result.evidence.verdict) == (0, "PASS")
    assert sorted((tmp_path / "lake").rglob("*.parquet")) == before


def test_flush_removes_what_the_new_gates_do_not_replace(run, small_lake):
    lake = Lake(small_lake)
    run(HISTORY, small_lake, start="2025-11-04", end="2025-11-06", mode="live", stride=16)
    kept = lake.gates(["EUR_USD"], venue="simulated").height
    run(HISTORY, small_lake, start="2025-11-05", end="2025-11-06", mode="live", stride=32, existing="flush")
    left = lake.gates(["EUR_USD"], venue="simulated")
    assert left.filter(left["time"].dt.day() == 4).height + 45 == left.height < kept


def test_a_resumed_run_keeps_its_window_and_does_not_rebuild(run, small_lake, tmp_path):
    lake, wall = Lake(small_lake), tmp_path / "wall"
    wall.write_text("a file where the export wants a folder")
    given = {"mode": "live", "export": str(wall / "gates.jsonl")}
    broken = run(HISTORY, small_lake, **given)
    assert broken.exit_code == 1 and broken.evidence.error.step == "export"
    lake.write_candles(simulate_candles(["EUR_USD", "USD_JPY"], "2025-11-06", "2025-11-08", seed=7), "simulated", source="simulated market")
    wall.unlink()
    whole = run(HISTORY, small_lake, resume=broken.evidence.run_id, **given)
    assert (whole.exit_code, whole.evidence.window) == (0, broken.evidence.window), "the lake has two days more; the run has not"
    assert [(s.name, bool(s.reused_from)) for s in whole.evidence.steps] == [("plan", True), ("rebuild gates", True), ("export", False)]
    assert read_gates_jsonl(wall / "gates.jsonl").gates.height == whole.evidence.numbers["gates"] == lake.gates().height


def test_an_empty_lake_says_what_to_do(run, tmp_path):
    result = run(HISTORY, str(tmp_path / "empty"))
    assert result.exit_code == 1 and "deskbook candles" in result.evidence.reason
