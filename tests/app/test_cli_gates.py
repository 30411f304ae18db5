"""`deskbook gates`: data on stdout, progress on stderr, exit codes, JSON that any parser reads."""
import json

import polars as pl
import pytest

from deskbook.app.cli import main
from deskbook.app.cli_gates import table_text
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake


@pytest.fixture
def lake(tmp_path):
    lake = Lake(tmp_path / "lake")
    lake.write_candles(simulate_candles(["EUR_USD", "BTCUSDT-PERP"], "2025-11-03", "2025-11-05"), "simulated")
    return lake


def run(capsys, *words):
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_backfill_prints_counts_and_progress_apart(lake, capsys):
    code, out, err = run(capsys, "gates", "backfill", "--lake", lake.url, "--json")
    report = json.loads(out, parse_constant=lambda c: pytest.fail(c))
    assert code == 0 and report["gates"] == sum(r["gates"] for r in report["instruments"]) > 300
    assert err.splitlines()[0].startswith("1/2 BTCUSDT-PERP (simulated): ") and "2/2 EUR_USD" in err
    assert lake.gates().height == report["gates"]


def test_backfill_options_reach_the_engine(lake, capsys):
    code, out, _ = run(capsys, "gates", "backfill", "--lake", lake.url, "-i", "eurusd", "--start", "2025-11-04", "--set", "stride=60", "--warmup-days", 1, "--json")
    r = json.loads(out)["instruments"]
    assert code == 0 and [(x["instrument"], x["gates"]) for x in r] == [("EUR_USD", 24)]
    code, out, _ = run(capsys, "gates", "backfill", "--lake", lake.url, "-i", "EUR_USD", "--start", "2025-11-04", "--flush", "--json")
    assert json.loads(out)["instruments"][0]["removed"] == 18, "six of the 24 hourly gates stand on the new grid too"
    code, out, _ = run(capsys, "gates", "backfill", "--lake", lake.url, "-i", "EUR_USD", "--mode", "compat")
    assert code == 0 and out.splitlines()[0].split()[:4] == ["instrument", "venue", "candles", "gates"]
    assert lake.gates(engine_mode="compat").height > 100


def test_show_prints_the_newest_gates(lake, capsys):
    run(capsys, "gates", "backfill", "--lake", lake.url)
    code, out, _ = run(capsys, "gates", "show", "EUR_USD", "--last", 3, "--lake", lake.url, "--json")
    rows = json.loads(out, parse_constant=lambda c: pytest.fail(c))
    assert code == 0 and [r["instrument"] for r in rows] == ["EUR_USD"] * 3 and rows[0]["ts_ms"] < rows[2]["ts_ms"]
    code, out, _ = run(capsys, "gates", "show", "--last", 2, "--lake", lake.url)
    assert code == 0 and len(out.strip().splitlines()) == 5 and "BTCUSDT-PERP" in out


def test_hourly_gates_do_not_mix_with_minute_gates(lake, capsys):
    hours = simulate_candles(["EUR_USD"], "2025-10-27", "2025-11-05").group_by_dynamic("time", every="1h", group_by="instrument").agg(
        pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last(), pl.col("volume").sum())
    lake.write_candles(hours, "simulated", "H1")
    for timeframe in ("M1", "H1", "M1"):
        assert run(capsys, "gates", "backfill", "--lake", lake.url, "-i", "EUR_USD", "--flush", "--set", f"timeframe={timeframe}", "--set", "stride=8")[0] == 0
    assert lake.gates().height > 300 and 10 < lake.gates(timeframe="H1").height < 30
    rows = json.loads(run(capsys, "gates", "show", "--timeframe", "H1", "--lake", lake.url, "--json")[1])
    assert all(r["ts_ms"] % 3_600_000 == 0 for r in rows)


@pytest.mark.parametrize("words, code, text", [
    (["backfill", "-i", "EURUSDT"], 1, "it holds BTCUSDT-PERP, EUR_USD"),
    (["backfill", "--start", "2025-11-05", "--end", "2025-11-04"], 2, "is not before end"),
    (["backfill", "--start", "soon"], 2, "'soon' is not a time"),
    (["backfill", "--set", "window=4"], 2, "window=4"),
    (["backfill", "--set", "windows=64"], 2, "Did you mean 'window'"),
    (["backfill", "--mode", "fast"], 2, "mode='fast'"),
    (["backfill", "--workers", "-1"], 2, "workers=-1"),
    (["backfill", "-i", "EUR_USD", "--start", "2025-11-03T00:00Z", "--end", "2025-11-03T00:30Z"], 1, "only 30 candles; a gate needs 64"),
    (["show"], 1, "deskbook gates backfill"),
    (["show", "--last", "0"], 2, "--last 0")])
def test_mistakes_are_said_in_one_line_on_stderr(lake, capsys, words, code, text):
    got, out, err = run(capsys, "gates", *words, "--lake", lake.url)
    assert got == code and text in err and "Traceback" not in err and not out.startswith("{")


def test_help_has_an_example(capsys):
    for command in ("backfill", "show"):
        code, out, _ = run(capsys, "gates", command, "--help")
        assert code == 0 and f"deskbook gates {command}" in out


def test_an_empty_table_says_so():
    assert table_text([]) == "nothing"
