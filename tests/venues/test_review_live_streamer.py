"""What a review of the live desk asked of the streamer: errors that nobody saw, clocks that jump, an empty backfill, a gap of more than a page."""
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_streamer import PAIRS, World

from deskbook.core.clock import DAY_MS, to_ms
from deskbook.stores.live_state import read_candles
from deskbook.venues import streamer as module
from deskbook.venues.sandbox.process import sandbox_process


@pytest.fixture(scope="module")
def sandbox():
    with sandbox_process(clock="virtual", start="2025-11-03T00:00:05Z", speed=0, instruments=list(PAIRS)) as s:
        yield s


@pytest.fixture
def world(sandbox, valkey_url, key_prefix, tmp_path):
    sandbox.control.clear_faults()
    return World(sandbox, valkey_url, key_prefix, tmp_path / "lake", candle_backfill_minutes=30)


def test_candles_that_cannot_be_put_are_told_and_stay_owed(world, monkeypatch):
    async def body(w):
        s = w.streamer()
        put = module.put_candles
        async def refuses(live, instrument, *a, **k):
            if instrument == "EUR_USD": raise ValueError("a figure that JSON has not")
            return await put(live, instrument, *a, **k)
        w.advance(600)
        monkeypatch.setattr(module, "put_candles", refuses)
        await s.poll()
        await s.poll()
        assert "a figure that JSON has not" in s.status()["EUR_USD"].error and s.status()["EUR_USD"].owed > 0
        assert s.status()["USD_JPY"].error == "" and (await read_candles(w.live, "USD_JPY")).height > 0
        monkeypatch.undo()
        await s.poll()
        assert s.status()["EUR_USD"].error == "" and s.status()["EUR_USD"].owed == 0
    world.run(body)


def test_a_clock_that_jumps_ahead_and_back_leaves_no_gap(sandbox, valkey_url, key_prefix, tmp_path):
    w = World(sandbox, valkey_url, key_prefix, tmp_path / "lake", candle_backfill_minutes=30, candle_retention_days=1)
    async def body(w):
        w.advance(1800)
        s = w.streamer()
        await s.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        for jump in (10*DAY_MS, -3*3_600_000):
            w.now += jump
            await s.poll()
            w.advance(120)  # right again
            await s.poll()
            await s.poll()
        await s.save()
        await w.check(since)
    w.run(body)


def test_a_start_on_a_weekend_waits_for_the_market(valkey_url, key_prefix, tmp_path):
    with sandbox_process(clock="virtual", start="2025-11-08T12:00:05Z", speed=0, instruments=list(PAIRS)) as closed:
        w = World(closed, valkey_url, key_prefix, tmp_path / "lake", candle_backfill_minutes=30)
        async def body(w):
            s = w.streamer()
            for _ in range(2):
                await s.poll()
            assert all((f.last_ms, f.error, f.stale) == (None, "", False) for f in s.status().values())
            w.advance(34*3_600 + 300)  # Sunday 22:05
            await s.poll()
            await s.save()
            assert (await read_candles(w.live, "EUR_USD")).height >= 3 and not s.status()["EUR_USD"].stale
            await w.check(to_ms("2025-11-09T21:00:00Z"))
        w.run(body)


def test_a_gap_of_more_than_a_page_of_the_venue_is_filled(world):
    async def body(w):
        s = w.streamer()
        w.advance(600)
        await s.poll()
        since = to_ms((await read_candles(w.live, "EUR_USD"))["time"][0])
        w.advance(4*86_400)
        for _ in range(20):  # the venue takes longer over so many than this test waits for one answer
            await s.poll()
            if not s.status()["EUR_USD"].error and not s.status()["USD_JPY"].error: break
        await s.save()
        assert (await read_candles(w.live, "EUR_USD")).filter(pl.col("complete")).height > 5_000
        await w.check(since)
    world.run(body)
