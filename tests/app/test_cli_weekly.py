"""`deskbook weekly`: real pages from a loopback exchange, the next exchange when one is down, simulated candles that say so."""
import json
import re
import socket
import sys
import uuid
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "venues"))
from bybit_public import MINUTE, BybitPublic

import deskbook.app.cli_run as cli_run
import deskbook.app.cli_weekly as weekly
from deskbook.app.cli import main
from deskbook.core.clock import DAY_MS
from deskbook.core.errors import SourceError
from deskbook.stores.lake import Lake
from deskbook.venues import public_candles as public

BARS = weekly.FETCH_DAYS * 1440 + 200  # a little more than is asked for


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def lake():
    return Lake(f"memory://weekly-{uuid.uuid4().hex}")


def nowhere() -> str:
    with socket.socket() as s:  # a port nobody listens on
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


CONNECT = public.connect


def connecting(**urls):
    """Every name is answered by ccxt's bybit at its own address, the dead one where none is given."""
    dead = nowhere()
    return lambda name: CONNECT("bybit", urls.get(name, dead), timeout_s=3)


def market(bars=300, **kw):
    return BybitPublic(bars, coins=("BTC", "ETH", "SOL"), **kw)


def test_eight_days_of_three_perpetuals(lake):
    seen = []
    with market(BARS) as server:
        fetch = partial(weekly.fetch_week, lake, lambda: server.now, connect=connecting(bybit=server.url), progress=lambda *a: seen.append(a))
        source = fetch()
        first = len(server.calls)
        assert source == fetch(), "asked again, the same week"
    assert source.venue == "bybit" and all(name in source.said for name in weekly.PERPETUALS)
    assert source.commission_bp == 11.0 and "11 bp a round trip" in source.said
    held = lake.inventory()
    assert held["instrument"].to_list() == sorted(weekly.PERPETUALS) and held["rows"].to_list() == [8 * 1440 - 1] * 3
    assert held["first"].dt.epoch("ms").min() >= server.now - 8 * DAY_MS and held["last"].dt.epoch("ms").max() + 2 * MINUTE > server.now
    assert first == 3 * 12 == len(server.calls), "the second time nothing is missing"
    assert seen[-1] == ("bybit SOLUSDT-PERP", 8 * 1440 - 1, 8 * 1440 - 1)


def test_one_exchange_is_down_and_the_next_answers(lake):
    with market() as server:
        source = weekly.fetch_week(lake, lambda: server.now, connect=connecting(bingx=server.url))
    assert source.venue == "bingx" and "from bingx" in source.said and lake.inventory()["venue"].unique().to_list() == ["bingx"]


def test_an_exchange_without_one_of_the_three_or_without_candles_is_passed_over(lake):
    with BybitPublic(300, coins=("BTC", "ETH")) as two, market(faults=dict.fromkeys(range(99), "empty")) as silent, market() as three:
        source = weekly.fetch_week(lake, lambda: three.now, connect=connecting(bybit=two.url, bingx=silent.url, okx=three.url))
    assert source.venue == "okx"


def test_no_exchange_names_why_each_did_not_answer(lake):
    with pytest.raises(SourceError, match=r"no exchange.*bybit: .*; bingx: .*; okx: .*--offline"):
        weekly.fetch_week(lake, connect=connecting())


@pytest.fixture
def started(monkeypatch):
    """The runbook is not run; what it would be started with is kept."""
    kept = []
    monkeypatch.setattr(cli_run, "start", lambda *a, **k: kept.append((a, k)) or 0)
    monkeypatch.setattr(weekly, "SIMULATE_DAYS", 2)
    return kept


def test_offline_asks_nobody(started, monkeypatch, capsys):
    monkeypatch.setattr(public, "connect", lambda name: pytest.fail(f"{name} was asked"))
    assert main(["weekly", "--offline"]) == 0
    assert capsys.readouterr().out == "Candles: SIMULATED MARKET, no real prices (asked for).\n"
    assert started == [(("weekly_signal_study", {"venue": "simulated", "commission_bp": 0.0, "mode": "live"}, False), {"confirm": "live weekly_signal_study"})]
    assert len(Lake().inventory()) == 7


def test_with_a_network_the_first_line_names_the_exchange(started, monkeypatch, capsys):
    with market() as server:
        monkeypatch.setattr(public, "connect", connecting(bybit=server.url))
        monkeypatch.setattr(weekly, "fetch_week", partial(weekly.fetch_week, clock=lambda: server.now))
        assert main(["weekly", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "from bybit, 8 days" in err and started[0][0][1]["venue"] == "bybit"


def test_all_down_is_a_simulated_week_that_says_so_everywhere(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(public, "connect", connecting())
    monkeypatch.setattr(weekly, "SIMULATE_DAYS", 9)
    start = cli_run.start
    monkeypatch.setattr(cli_run, "start", lambda name, given, *a, **k: start(name, given | {"n_bootstrap": 100}, *a, **k))
    assert main(["weekly"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Candles: SIMULATED MARKET, no real prices (no exchange could be reached)."
    reports, page = tmp_path / "reports", Path(lines[-1])
    title = re.search(r"<title>(.*?)</title>", page.read_text())[1]
    assert "simulated market" in title and page.parent.name in (reports / "index.html").read_text()
    canonical = json.loads((reports / "evidence" / "outcome_weekly_costs.json").read_text())
    assert (canonical["source"], canonical["venue"]) == ("simulated market", "simulated")
    assert len(Lake().gates(venue="simulated")["instrument"].unique()) == 7


def test_outside_the_project_nothing_is_fetched(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weekly, "fetch_week", lambda *a, **k: pytest.fail("fetched"))
    assert main(["weekly"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "no runbook 'weekly_signal_study'" in err and "folder of the project" in err
