"""KILL_REQUIRE_FRESH_GATES holds at the terminal as well as at the API."""
import asyncio
import json

import pytest

from deskbook.app.cli import main
from deskbook.core.clock import system_clock
from deskbook.stores.live import open_live
from deskbook.stores.live_state import put_gate

PAIRS = ("EUR_USD", "USD_JPY")


@pytest.fixture
def desk(monkeypatch, tmp_path, valkey_url, key_prefix):
    for name, value in {"DESKBOOK_HOME": tmp_path, "VALKEY_URL": valkey_url, "DESKBOOK_KEY_PREFIX": key_prefix, "HOTBAND_PAIRS": ",".join(PAIRS),
                        "TIMESCALE_URL": "postgresql://127.0.0.1:1/none"}.items():
        monkeypatch.setenv(name, str(value))

    def gates(**age_s):
        async def put():
            live = open_live(valkey_url, key_prefix)
            for pair, age in age_s.items():
                asof = system_clock() - round(age*1000)
                await put_gate(live, pair, asof - 60_000, json.dumps({"instrument": pair, "ts_ms": asof - 60_000, "asof_ms": asof}), 900, 10)
            await live.aclose()
        asyncio.run(put())
    return gates


def test_clearing_waits_for_fresh_gates_where_that_is_asked_for(desk, monkeypatch, capsys):
    def clear(): return main(["kill-switch", "clear", "--why", "test"]), capsys.readouterr().err
    monkeypatch.setenv("KILL_REQUIRE_FRESH_GATES", "1")
    code, err = clear()
    assert code == 4 and "no gate at all" in err
    desk(EUR_USD=10, USD_JPY=181)
    code, err = clear()
    assert code == 4 and "USD_JPY stale" in err and "EUR_USD" not in err
    desk(USD_JPY=10)
    assert clear()[0] == 0


def test_without_it_nobody_looks_at_gates(desk, monkeypatch, capsys):
    monkeypatch.setenv("KILL_REQUIRE_FRESH_GATES", "0")
    assert main(["kill-switch", "clear", "--why", "test"]) == 0
