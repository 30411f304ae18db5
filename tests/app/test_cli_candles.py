"""The candles commands: exit codes, clean stdout, sources named, nothing lost."""
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from deskbook.app.cli import main
from deskbook.market.simulated import simulate_candles
from deskbook.stores.lake import Lake


@pytest.fixture
def lake(tmp_path):
    return str(tmp_path / "lake")


def run(capsys, *args, code=0):
    got = main(["candles", *map(str, args)])
    out = capsys.readouterr()
    assert got == code, out.err
    return out


def answer(capsys, *args, code=0):
    return json.loads(run(capsys, *args, "--json", code=code).out)


def test_simulate_list_check(capsys, lake):
    made = answer(capsys, "simulate", "EUR_USD", "BTCUSDT-PERP", "--start", "2025-11-03", "--end", "2025-11-05", "--lake", lake)["simulated"]
    assert {m["source"] for m in made} == {"simulated market, seed 0"} and made[1]["added"] == 2880
    again = answer(capsys, "simulate", "EUR_USD", "--start", "2025-11-03", "--end", "2025-11-05", "--lake", lake)["simulated"]
    assert (again[0]["added"], again[0]["changed"]) == (0, 0) and again[0]["same"] > 2500
    held = answer(capsys, "list", "--lake", lake)["candles"]
    assert [(h["venue"], h["instrument"], h["source"]) for h in held] == [("simulated", n, "simulated market, seed 0") for n in ("BTCUSDT-PERP", "EUR_USD")]
    checked = answer(capsys, "check", "--lake", lake, "--spans", 2)["checked"]
    assert [c["missing"] == 0 for c in checked] == [True, False] and len(checked[1]["spans"]) == 2 and checked[1]["source"]
    for args in (["list"], ["check", "--spans", 1]):
        text = run(capsys, *args, "--lake", lake).out
        assert "simulated market, seed 0" in text and "EUR_USD" in text


def test_a_planted_edge_is_part_of_the_source(capsys, lake):
    made = answer(capsys, "simulate", "EUR_USD", "--start", "2025-11-03", "--end", "2025-11-04", "--edge-bp", 2, "--lake", lake)["simulated"]
    assert made[0]["source"] == "simulated market, seed 0, planted 2 bp over 60 min"


def test_import_sets_bad_rows_aside_and_says_so(capsys, lake, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("when,o,h,l,c\n2025-11-03 01:03,1.1525,1.1527,1.1524,1.1526\n2025-11-03 01:04,1.1525\n2025-11-03 01:05,1.1525,1.1520,1.1519,1.1526\n")
    out = run(capsys, "import", file, "--venue", "oanda", "--instrument", "EURUSD", "--map", "time=when", "--lake", lake, "--json")
    (d,) = json.loads(out.out)["imported"]
    assert (d["added"], d["quarantined"], d["reasons"], d["unreadable_lines"], d["source"]) == (1, 2, {"high_below_body": 1}, [3], "oanda file")
    assert "2 rows in quarantine" in out.err
    assert sorted(Lake(lake).quarantine()["reason"]) == ["high_below_body", "line 3: 2 fields instead of 5"]
    answer(capsys, "simulate", "EUR_USD", "--start", "2025-11-03", "--end", "2025-11-04", "--lake", lake)
    assert {c["venue"]: c["quarantined"] for c in answer(capsys, "check", "--lake", lake)["checked"]} == {"oanda": 1, "simulated": 0}
    assert answer(capsys, "check", "--lake", lake)["checked"][0]["quarantined"] >= 1


def test_a_bad_file_does_not_cost_the_good_one(capsys, lake, tmp_path):
    good, cut = tmp_path / "oanda_EURUSD_M1_202511.parquet", tmp_path / "oanda_USDJPY_M1_202511.parquet"
    simulate_candles(["EUR_USD"], "2025-11-03", "2025-11-04").write_parquet(good)
    cut.write_bytes(good.read_bytes()[:500])
    out = run(capsys, "import", cut, good, tmp_path / "absent.csv", "--lake", lake, "--json", code=1)
    got = json.loads(out.out)
    assert [d["instruments"] for d in got["imported"]] == [["EUR_USD"]] and len(got["failed"]) == 2
    assert "oanda_USDJPY_M1_202511.parquet is not a whole Parquet file" in out.err and "absent.csv cannot be read" in out.err


@pytest.mark.parametrize(("args", "words"), [
    (["fetch", "BTCUSDT"], "bybit:BTCUSDT"), (["fetch", "bybit:BTCUSDT", "--days", "0"], "--days 0"), (["import", "x.csv", "--map", "when"], "time=when"),
    (["simulate", "--start", "2025-11-05", "--end", "2025-11-03"], "is empty"), (["simulate", "--start", "soon"], "'soon' is not a time"),
    (["check", "--timeframe", "M1", "--calendar", "absent.toml"], "no M1 candles"), (["check", "EUR_USD"], "holds no candles"), (["nonsense"], "nonsense")])
def test_what_is_wrong_is_said(capsys, lake, args, words):
    code = main(["candles", *args, *(["--lake", lake] if args != ["nonsense"] else [])])
    out = capsys.readouterr()
    assert code in (1, 2) and words in out.err and out.out == ""


def test_an_empty_lake_says_how_to_fill_it(capsys, lake):
    assert "candles simulate" in run(capsys, "list", "--lake", lake).err
    assert answer(capsys, "list", "--lake", lake)["candles"] == []


@pytest.mark.parametrize("command", ["import", "fetch", "simulate", "list", "check"])
def test_help_has_an_example_and_json(capsys, command):
    text = run(capsys, command, "--help").out
    assert "Example" in text and f"deskbook candles {command}" in text and "--json" in text and "Exit codes" in text


def test_json_on_stdout_is_all_there_is(lake):
    cmd = [sys.executable, "-c", "import sys; from deskbook.app.cli import main; sys.exit(main())", "candles", "simulate", "EUR_USD",
        "--start", "2025-11-03", "--end", "2025-11-04", "--lake", lake, "--json"]
    p = subprocess.run(cmd, capture_output=True, text=True, check=True)
    assert json.loads(p.stdout)["simulated"][0]["instrument"] == "EUR_USD" and p.stderr == ""


WEEKEND = ("--start", "2025-11-08", "--end", "2025-11-09")
CLOSED = "EUR_USD: the market is closed between 2025-11-07T22:00:00Z and 2025-11-09T22:00:00Z; nothing was written."


def test_a_weekend_is_said_and_is_no_failure(capsys, lake):
    said = run(capsys, "simulate", "EUR_USD", *WEEKEND, "--lake", lake)
    assert said.out == "" and said.err == f"deskbook: {CLOSED}\n"
    assert answer(capsys, "simulate", "EUR_USD", *WEEKEND, "--lake", lake) == {"simulated": [], "note": CLOSED}
    assert "is empty" in run(capsys, "list", "--lake", lake).err


def test_only_those_that_gave_nothing_are_named(capsys, lake):
    said = run(capsys, "simulate", "EUR_USD", "BTCUSDT-PERP", *WEEKEND, "--lake", lake)
    assert said.err.endswith(f"{CLOSED}\n") and "BTCUSDT-PERP" in said.out and "EUR_USD" not in said.out
    assert answer(capsys, "simulate", "EUR_USD", "--start", "2025-11-07", "--end", "2025-11-09", "--lake", lake)["note"] == ""


HELD = """
import sys
import deskbook.venues.public_candles as pc
from deskbook.app.cli import main
connect = pc.connect
pc.connect = lambda name: connect(name, sys.argv[1])
print("ready", flush=True)
sys.exit(main(["candles", "fetch", "bybit:BTCUSDT", "--days", "2", "--lake", sys.argv[2]]))
"""


class Hangs(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.server.asked.set()
        self.server.release.wait(20)


def test_ctrl_c_ends_with_130_and_one_sentence(lake):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hangs)
    server.asked, server.release, server.daemon_threads = threading.Event(), threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    p = subprocess.Popen([sys.executable, "-c", HELD, f"http://127.0.0.1:{server.server_port}", lake], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"})
    assert server.asked.wait(60)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=20)
    server.release.set()
    server.shutdown()
    assert p.returncode == 130 and err.strip() == "deskbook: interrupted; what was stored stays. Run the same command again to go on."


@pytest.mark.data
def test_real_files_by_their_names(capsys, lake, shared_data):
    files = [shared_data / "candles" / f"{n}.parquet" for n in ("oanda_EURUSD_M1_201405", "fxcm_EURUSD_M1_201405", "oanda_XAUUSD_M1_201405", "dydx_BTC-USD-PERP_M1_20260101")]
    got = answer(capsys, "import", *files, "--lake", lake)["imported"]
    assert [(d["venue"], d["instruments"][0], d["added"], d["quarantined"], d["crossed"]) for d in got] == [
        ("oanda", "EUR_USD", 15366, 0, 0), ("fxcm", "EUR_USD", 15857, 0, 977), ("oanda", "XAU_USD", 15222, 0, 0), ("dydx", "BTCUSD-PERP", 1410, 30, 0)]
    checked = answer(capsys, "check", "EURUSD", "--venue", "oanda", "--lake", lake)["checked"]
    assert [(c["missing"], c["longest"], c["closures"]) for c in checked] == [(474, 6, 2)]
    assert Lake(lake).candles("EUR_USD", venue="fxcm").filter(pl.col("crossed")).height == 977
