"""`deskbook study` as a user calls it."""
import json

import pytest
from typer.testing import CliRunner

from deskbook.app.cli import main
from deskbook.app.cli_study import app
from deskbook.core.files import read_json
from deskbook.gates.engine import build_gates
from deskbook.gates.payload import write_gates_jsonl
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    lake, candles = Lake(folder / "lake"), simulate_candles(["EUR_USD", "USD_JPY"], "2025-11-03", "2025-11-08", seed=2)
    gates = build_gates(candles)
    lake.write_candles(candles, "simulated")
    lake.write_gates(gates, "sound", "simulated")
    write_gates_jsonl(gates, folder / "gates.jsonl")
    return folder


def run(folder, *words):
    return CliRunner().invoke(app, [*words, "--lake", str(folder / "lake")])


def test_outcomes_json_is_evidence_and_file_equals_stdout(stored, tmp_path):
    done = run(stored, "outcomes", "--start", "2025-11-04", "--end", "2025-11-07", "--horizons", "15,60", "--bootstrap", "100", "-i", "EUR_USD", "--json", "--export-json", str(tmp_path / "e.json"))
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == read_json(tmp_path / "e.json") and set(document["instruments"]) == {"EUR_USD"}
    assert document["window"] == {"start": "2025-11-04T00:00:00Z", "end": "2025-11-07T00:00:00Z"} and document["cost_model"] == "quoted"
    assert "data_end" not in document["dropped"]  # prices are read past the window


def test_outcomes_text(stored):
    done = run(stored, "outcomes", "--horizons", "60", "--bootstrap", "100", "--cost-model", "none")
    assert done.exit_code == 0 and "cost model none" in done.stdout and done.stdout.count("USD_JPY") >= 2


def test_gates_file_with_a_bad_line_keeps_the_good_ones(stored, tmp_path):
    lines = (stored / "gates.jsonl").read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:100], '{"instrument": "EUR_USD", "haz', *lines[100:]]) + "\n")
    clean, broken = (run(stored, "outcomes", "--gates-file", str(p), "--horizons", "60", "--bootstrap", "100", "--json") for p in (stored / "gates.jsonl", bad))
    assert "line 101" in broken.stderr and clean.exit_code == broken.exit_code == 0
    assert json.loads(clean.stdout)["instruments"] == json.loads(broken.stdout)["instruments"]


def test_legacy_method(stored):
    done = run(stored, "outcomes", "--method", "legacy", "--horizons", "5,60", "--json")
    cell = json.loads(done.stdout)["instruments"]["EUR_USD"]["60"]
    assert {"p_value_holm", "hazard_deciles", "avg_return_pct"} <= set(cell) and "n_eff" not in cell


@pytest.mark.data
def test_legacy_from_the_archived_file_without_prices(shared_data, tmp_path):
    folder = shared_data / "golden-study"
    golden = read_json(folder / "outcome_weekly_2025-11-03_to_2025-11-10.json")["instruments"]["AUD_USD"]["5"]
    done = CliRunner().invoke(app, ["outcomes", "--method", "legacy", "--cost-model", "none", "--gates-file", str(folder / "gates_with_roc.jsonl"), "--json", "--lake", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["instruments"]["AUD_USD"]["5"]["avg_return_pct"] == pytest.approx(golden["avg_return_pct"], rel=1e-9)


@pytest.mark.parametrize("words, code, message", [
    (["--start", "2025-11-07", "--end", "2025-11-04"], 2, "start before the end"), (["--horizons", "sixty"], 2, "5,15,30,60,240"), (["--cost-model", "free"], 2, "cost model"),
    (["--start", "2019-01-01", "--end", "2019-01-02"], 1, "gates backfill"), (["-i", "GBP_USD"], 1, "GBP_USD"), (["--gates-file", "missing.jsonl"], 1, "missing.jsonl"),
    (["--cost-model", "none", "--spread", "EUR_USD:1"], 2, "EUR_USD=0.00016")])
def test_mistakes(stored, capsys, words, code, message):
    assert main(["study", "outcomes", "--lake", str(stored / "lake"), *words]) == code
    assert message in capsys.readouterr().err


def test_roster_with_a_ledger_is_idempotent_and_dry_writes_nothing(stored, tmp_path):
    run(stored, "outcomes", "--bootstrap", "100", "--export-json", str(tmp_path / "e.json"))
    book = tmp_path / "roster.jsonl"
    words = ["roster", str(tmp_path / "e.json"), "--ledger", str(book), "--json"]
    dry = CliRunner().invoke(app, [*words, "--dry"])
    assert dry.exit_code == 0 and not book.exists()
    first, second = (CliRunner().invoke(app, words) for _ in range(2))
    assert first.stdout == second.stdout == dry.stdout and len(book.read_text().splitlines()) == 1
    assert {d["instrument"]: d["sound_verdict"] for d in json.loads(first.stdout)} == {"EUR_USD": "UNPROVEN", "USD_JPY": "UNPROVEN"}


def test_roster_without_evidence(tmp_path, capsys):
    assert main(["study", "roster", str(tmp_path / "none.json")]) == 1
    assert "--export-json" in capsys.readouterr().err


def test_help_has_examples():
    for command in ("outcomes", "roster"):
        assert f"deskbook study {command}" in " ".join(CliRunner().invoke(app, [command, "--help"]).stdout.split())


