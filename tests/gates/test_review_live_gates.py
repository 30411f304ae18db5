"""What a review of the live desk found in the gate worker: a hazard that nobody heard of, and candles from the future."""
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_worker import ALWAYS, PAIRS, World

from deskbook.gates.settings import HAZARD_FALLBACK
from deskbook.market.simulated import simulate_candles
from deskbook.stores.live_state import candles_key, put_candles


@pytest.fixture(scope="module")
def market() -> pl.DataFrame:
    return simulate_candles(list(PAIRS), "2025-11-04T00:00:00Z", "2025-11-04T06:00:00Z")


@pytest.fixture
def world(valkey_url, key_prefix, tmp_path, market):
    return World(valkey_url, key_prefix, tmp_path / "lake", market)


def closed_ms(w, i):
    """The moment when candle `i` has closed."""
    return int(w.of("EUR_USD")["time"].dt.epoch("ms")[i]) + 60_000


async def put(w, a, b):
    await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").slice(a, b - a))


def test_a_hazard_that_lasts_is_told_when_its_third_gate_came_late(world):
    async def body(w):
        calls = []
        worker = w.worker(gates=ALWAYS, on_fallback=lambda name, gate: calls.append(gate.ts_ms))
        await put(w, 0, 100)
        w.now = closed_ms(w, 99) + 7_200_000  # an outage of two hours: what came before it is history
        await worker.round()
        assert calls == [] and worker.status()["EUR_USD"]["fallbacks_in_row"] > 3 and HAZARD_FALLBACK in worker.pairs["EUR_USD"].last.reasons
        for i in range(100, 104):
            await put(w, i, i + 1)
            w.now = closed_ms(w, i)
            await worker.round()
        assert calls == [closed_ms(w, 100) - 60_000], "told once, with the first gate that is fresh"
    world.run(body)


@pytest.mark.parametrize("saved", [True, False])
def test_a_worker_that_ended_before_it_could_tell_tells_when_it_is_back(world, saved):
    async def body(w):
        def refuses(name, gate): raise RuntimeError("the ledger is away")
        first = w.worker(gates=ALWAYS, on_fallback=refuses)
        await put(w, 0, 100)
        w.now = closed_ms(w, 99)
        await first.round()
        await first.flush()
        if saved:
            assert await first.save(first.pairs["EUR_USD"])
        calls = []
        second = w.worker(gates=ALWAYS, on_fallback=lambda name, gate: calls.append(gate.ts_ms))
        await put(w, 100, 101)
        w.now = closed_ms(w, 100)
        await second.round()
        await second.flush()
        assert calls == [closed_ms(w, 100) - 60_000]
        assert await second.save(second.pairs["EUR_USD"])
        third = w.worker(gates=ALWAYS, on_fallback=lambda name, gate: calls.append(gate.ts_ms))
        await put(w, 101, 102)
        w.now = closed_ms(w, 101)
        await third.round()
        assert len(calls) == 1, "who was told once is not told again by a restart"
    world.run(body)


@pytest.mark.parametrize("text", ["{half", "[]", "null", '{"time": "x"}', '{"t": "late", "o": 1, "h": 1, "l": 1, "c": 1}', '{"t": 1.5, "o": 1, "h": 1, "l": 1, "c": 1}',
                                  '{"t": %d, "o": 1, "h": 1, "l": "low", "c": 1}', '{"t": %d, "o": 1, "h": 1, "l": NaN, "c": 1}'])
@pytest.mark.parametrize("at", [50, 99])
def test_what_is_no_candle_stops_no_gate_and_is_thrown_away(world, text, at):
    """In the middle of the set, and in the place of the newest candle."""
    async def body(w):
        w.lake.write_candles(w.head(100), "paper")
        await w.put(w.head(100))
        worker = w.worker(venue="paper")
        await worker.round()
        key, score = w.live.key(candles_key("EUR_USD")), closed_ms(w, at) - 60_000
        await w.live.redis.zremrangebyscore(key, score, score)
        await w.live.redis.zadd(key, {text % score if "%d" in text else text: score})
        fresh = w.worker(venue="paper")
        for i in (100, 101):
            await w.put(w.cut(i, i + 1))
            await worker.round()
            await fresh.round()
        assert worker.pairs["USD_JPY"].last.ts_ms == fresh.pairs["USD_JPY"].last.ts_ms == closed_ms(w, 101) - 60_000
        await worker.flush()
        await w.check(fresh, w.head(102))
        assert await w.live.redis.zrangebyscore(key, score, score) == [] and worker.pairs["EUR_USD"].rebuilds + fresh.pairs["EUR_USD"].rebuilds <= 4
    world.run(body)
