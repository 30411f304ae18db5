"""`candles fetch` and `candles stream` from the desk's broker: a sandbox as another process, a real Valkey, a lake."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deskbook.core.loop import run_sync
from deskbook.stores.lake import Lake
from deskbook.stores.live import open_live
from deskbook.stores.live_state import read_candles
from deskbook.venues.sandbox.process import sandbox_process


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(instruments=["EUR_USD", "USD_JPY"]) as s:
        yield s


@pytest.fixture
def deskbook(sandbox, valkey_url, key_prefix, tmp_path):
    def run(*words):
        env = {**os.environ, "DESKBOOK_SANDBOX_URL": sandbox.url, "VALKEY_URL": valkey_url, "DESKBOOK_KEY_PREFIX": key_prefix,
               "DESKBOOK_HOME": str(tmp_path), "DESKBOOK_LAKE": str(tmp_path / "lake"), "HOTBAND_PAIRS": "EUR_USD,USD_JPY",
               "CANDLE_STREAM_BACKFILL_MINUTES": "4320"}  # a weekend is 48 hours without a candle
        return subprocess.run([Path(sys.executable).with_name("deskbook"), "candles", *words], env=env, capture_output=True, text=True, timeout=120)
    return run


def in_valkey(url, prefix, name):
    async def body():
        live = open_live(url, prefix)
        try:
            return await read_candles(live, name)
        finally:
            await live.aclose()
    return run_sync(body())


def test_fetch_fills_lake_and_valkey(deskbook, valkey_url, key_prefix, tmp_path):
    r = deskbook("fetch", "EUR_USD", "--start", "2025-11-04T10:00:00Z", "--end", "2025-11-04T11:00:00Z", "--json")
    assert r.returncode == 0, r.stderr
    (said,) = json.loads(r.stdout)["fetched"]
    kept = Lake(tmp_path / "lake").candles("EUR_USD", venue="sandbox")
    assert said["added"] == said["live"] == kept.height > 50
    assert in_valkey(valkey_url, key_prefix, "EUR_USD").equals(kept)
    again = json.loads(deskbook("fetch", "EUR_USD", "--start", "2025-11-04T10:00:00Z", "--end", "2025-11-04T11:00:00Z", "--json").stdout)["fetched"][0]
    assert (again["added"], again["live"]) == (0, 0)


def test_a_fetch_that_finds_nothing_says_why(deskbook, tmp_path):
    weekend = ("fetch", "EUR_USD", "--start", "2025-11-08", "--end", "2025-11-09")
    closed = "EUR_USD: the market is closed between 2025-11-07T22:00:00Z and 2025-11-09T22:00:00Z; nothing was written."
    told = deskbook(*weekend)
    assert (told.returncode, told.stdout) == (0, "") and closed in told.stderr
    said = json.loads(deskbook(*weekend, "--json").stdout)
    assert said["note"] == closed and (said["fetched"][0]["added"], said["fetched"][0]["first"]) == (0, None)


def test_stream_for_a_moment(deskbook, valkey_url, key_prefix, tmp_path):
    r = deskbook("stream", "--duration", "8", "--json")
    assert r.returncode == 0, r.stderr
    said = json.loads(r.stdout)["streamed"]
    assert [s["instrument"] for s in said] == ["EUR_USD", "USD_JPY"] and not [s for s in said if s["error"]]
    for s in said:
        kept = Lake(tmp_path / "lake").candles(s["instrument"], venue="sandbox")
        assert in_valkey(valkey_url, key_prefix, s["instrument"]).equals(kept) and kept.height


def test_an_unknown_instrument_is_said(deskbook):
    r = deskbook("stream", "EUR_USD", "XAU_USD", "--duration", "2")
    assert r.returncode == 1 and "XAU_USD" in r.stdout
