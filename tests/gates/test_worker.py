"""Live gates against a rebuild of the same candles, bit for bit, whatever happens to candles, Valkey and the worker on the way."""
import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest

from deskbook.core.metrics import REGIME_REJECTED
from deskbook.core.settings import Settings
from deskbook.gates.engine import build_gates
from deskbook.gates.live import gate_history, last_gate
from deskbook.gates.payload import gates_frame
from deskbook.gates.settings import HAZARD_FALLBACK, GateSettings
from deskbook.gates.worker import GateWorker, lake_history, live_gate_settings, warmup_candles
from deskbook.market.candles import clean_candles
from deskbook.market.simulated import simulate_candles
from deskbook.stores.embedded import start_valkey
from deskbook.stores.lake import Lake
from deskbook.stores.live import LiveUnavailable, open_live
from deskbook.stores.live_state import engine_key, gate_index_key, gate_key, put_candles

PAIRS = ("EUR_USD", "USD_JPY")
EACH = GateSettings(stride=1)
WARM = 400  # candles in the lake at the start


@pytest.fixture(scope="module")
def market() -> pl.DataFrame:
    return simulate_candles(list(PAIRS), "2025-11-04T00:00:00Z", "2025-11-04T12:00:00Z")


@pytest.fixture
def world(valkey_url, key_prefix, tmp_path, market):
    return World(valkey_url, key_prefix, tmp_path / "lake", market)


class World:
    """A worker between a lake and a Valkey, and a streamer of few words."""

    def __init__(self, url, prefix, folder, market, **settings):
        self.url, self.prefix, self.lake, self.market = url, prefix, Lake(folder), market
        self.settings = Settings(hotband_pairs=",".join(PAIRS), prometheus_port=0, **settings)
        self.live = None
        self.now = int(market["time"].dt.epoch("ms").max()) + 60_000

    def run(self, body):
        async def whole():
            self.live = open_live(self.url, self.prefix, timeout_s=10)
            try:
                return await body(self)
            finally:
                await self.live.aclose()
        return asyncio.run(whole())

    def worker(self, **more):
        return GateWorker(self.live, self.lake, self.settings, clock=lambda: self.now, **more)

    def of(self, name):
        return self.market.filter(pl.col("instrument") == name)

    async def put(self, frame):
        for name in PAIRS:
            part = frame.filter(pl.col("instrument") == name)
            if part.height:
                await put_candles(self.live, name, "M1", part)

    def head(self, n):
        return pl.concat(self.of(p).head(n) for p in PAIRS)

    def cut(self, a, b):
        return pl.concat(self.of(p).slice(a, b - a) for p in PAIRS)

    async def flush(self):
        keys = [k async for k in self.live.redis.scan_iter(self.prefix + "*")]
        if keys:
            await self.live.redis.delete(*keys)

    async def check(self, worker, final=None):
        """Index and last gate of each pair are what a rebuild gives."""
        await worker.flush()
        wanted = build_gates(self.market if final is None else final, EACH)
        for name in PAIRS:
            gates = await gate_history(self.live, name)
            want = wanted.filter(pl.col("instrument") == name)
            got = gates_frame(gates)
            assert got["time"].to_list() == want["time"].to_list()
            assert got.equals(want), [c for c in want.columns if not got[c].equals(want[c])]
            assert gates_frame([await last_gate(self.live, name)]).equals(want.tail(1))


def test_one_gate_for_each_candle_as_it_comes(world):
    async def body(w):
        w.lake.write_candles(w.head(WARM), "sim")
        worker = w.worker()
        await w.put(w.cut(WARM - 1, WARM))
        assert await worker.round() == len(PAIRS)
        for i in range(WARM, WARM + 40):
            await w.put(w.cut(i, i + 1))
            assert await worker.round() == len(PAIRS)
            assert await worker.round() == 0
        await w.check(worker, w.head(WARM + 40))
        assert {s["rebuilds"] for s in worker.status().values()} == {1}
    world.run(body)


def revised(frame, seed):
    """The same candles with other numbers, as a first and wrong version of them."""
    return frame.with_columns(pl.col("high") * (1 + 0.0001*seed), pl.col("close") * 1.0, pl.col("low") * (1 - 0.0001*seed), pl.col("volume") + seed)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_on_the_way(world, seed):
    """Out of order, doubled, late, revised, in gaps; flushes, restarts with a good state, an old one, a broken one, none."""
    rng = random.Random(seed)

    async def body(w):
        w.lake.write_candles(w.head(WARM), "sim")
        delivered = w.head(WARM)
        worker, at, owed, happened = w.worker(), WARM, [], set()
        w.market = w.head(WARM + 160)
        n = min(w.of(p).height for p in PAIRS)
        while at < n or owed:
            what = rng.choice(["next"]*8 + ["gap", "wrong", "twice", "owed", "owed", "flush", "restart", "crash", "lost", "broken"])
            step = min(rng.randint(1, 30), n - at)
            piece = None
            if what in ("next", "gap", "wrong") and at < n:
                piece = w.cut(at, at + step)
                if what == "wrong":
                    owed.append(piece.tail(1 + rng.randrange(piece.height)))
                    piece = pl.concat([piece, revised(owed[-1], 1 + rng.randrange(9))]).unique(["instrument", "time"], keep="last", maintain_order=True)
                elif what == "gap" and step > 3:
                    owed.append(w.cut(at + 1, at + 1 + rng.randint(1, step - 2)))
                    piece = piece.join(owed[-1], on=["instrument", "time"], how="anti")
                at += step
            elif what == "twice":
                piece = delivered.tail(rng.randint(1, 40))
            elif what == "owed" and owed:
                piece = owed.pop(rng.randrange(len(owed)))
            elif what == "flush":
                await w.flush()
                if rng.random() < 0.5:
                    await worker.round()
                w.lake.write_candles(delivered, "sim")
                await w.put(pl.concat(delivered.filter(pl.col("instrument") == p).tail(rng.choice([5, 200, 9999])) for p in PAIRS))
            elif what in ("restart", "crash", "lost", "broken"):
                if what == "restart":
                    await worker.flush()
                    for p in worker.pairs.values():
                        await worker.save(p)
                for p in worker.pairs.values():
                    if p.fill:
                        p.fill.cancel()
                for name in PAIRS:
                    if what == "lost":
                        await w.live.redis.delete(w.live.key(engine_key(name)))
                    if what == "broken":
                        await w.live.set({engine_key(name): "{half"})
                worker = w.worker()
            if piece is not None and piece.height:
                delivered = clean_candles(pl.concat([delivered, piece])).candles
                piece = piece.sample(fraction=1, shuffle=True, seed=seed)
                for part in (piece.slice(0, piece.height//2), piece.slice(piece.height//2)):
                    await w.put(part)
                    if rng.random() < 0.5:
                        await worker.round()
                if rng.random() < 0.3:
                    w.lake.write_candles(delivered, "sim")
            happened.add(what)
            await worker.round()
        assert {"flush", "crash", "gap", "wrong"} <= happened or seed
        await w.check(worker)
    world.run(body)


def test_a_saved_state_spares_the_rebuild_and_gives_the_same(world):
    async def body(w):
        await w.put(w.head(500))
        first = w.worker()
        await first.round()
        await first.flush()
        assert [await first.save(p) for p in first.pairs.values()] == [True, True]
        await w.put(w.cut(500, 520))
        second = w.worker()
        assert await second.round() == 2*20
        assert {s["rebuilds"] for s in second.status().values()} == {0}
        await w.put(revised(w.cut(450, 452), 3))
        await second.round()
        await w.put(w.cut(450, 452))
        await second.round()
        await w.check(second, w.head(520))
    world.run(body)


def test_other_settings_do_not_take_the_saved_state(world):
    async def body(w):
        await w.put(w.head(300))
        first = w.worker()
        await first.round()
        await first.flush()
        for p in first.pairs.values():
            await first.save(p)
        other = w.worker(gates=GateSettings(stride=1, hazard_percentile=0.8))
        await other.round()
        return other.status()["EUR_USD"]["rebuilds"]
    assert world.run(body) == 1


def test_a_flush_in_mid_run_comes_back(world):
    async def body(w):
        w.lake.write_candles(w.head(450), "sim")
        worker = w.worker()
        await w.put(w.head(450))
        await worker.round()
        await worker.flush()
        before = await w.live.get(gate_key("EUR_USD"))
        await w.flush()
        await worker.round()
        assert json.loads(await w.live.get(gate_key("EUR_USD")))["ts_ms"] == json.loads(before)["ts_ms"]
        await w.put(w.cut(440, 460))
        await worker.round()
        await w.check(worker, w.head(460))
        assert 0 < await w.live.redis.pttl(w.live.key(gate_key("EUR_USD"))) <= 900_000
    world.run(body)


def test_what_is_not_stored_is_not_saved(world):
    """A saved state says that all its gates are stored; a worker that started from it would never write them."""
    async def body(w):
        await w.put(w.head(300))
        worker = w.worker()

        async def saved():
            await worker.round()
            await worker.flush()
            return [await worker.save(p) for p in worker.pairs.values()]
        before = await saved()
        await w.flush()
        during = await saved()
        await w.put(w.head(300))
        return before, during, await saved()
    assert world.run(body) == ([True, True], [False, False], [True, True])


def test_the_index_keeps_its_size(valkey_url, key_prefix, tmp_path, market):
    w = World(valkey_url, key_prefix, tmp_path / "lake", market, gate_retention=100)

    async def body(w):
        await w.put(w.head(500))
        worker = w.worker()
        await worker.round()
        await worker.flush()
        await w.put(w.cut(500, 510))
        await worker.round()
        gates = gates_frame(await gate_history(w.live, "EUR_USD"))
        assert gates.equals(build_gates(w.of("EUR_USD").head(510), EACH).tail(100))
        assert await w.live.redis.zcard(w.live.key(gate_index_key("EUR_USD"))) == 100
    w.run(body)


def test_a_long_lake_is_read_only_as_far_as_it_matters(tmp_path):
    candles = simulate_candles(["EUR_USD"], "2025-09-01T00:00:00Z", "2025-11-08T00:00:00Z")
    lake = Lake(tmp_path / "lake")
    lake.write_candles(candles, "sim")
    until = int(candles["time"].dt.epoch("ms")[-1])
    some = lake_history(lake, "EUR_USD", EACH, until, 200)
    assert 200 + warmup_candles(EACH) <= some.height < candles.height / 2
    assert build_gates(some, EACH).tail(200).equals(build_gates(candles, EACH).tail(200))
    assert lake_history(lake, "EUR_USD", EACH, until, 10**6).equals(candles)


def test_a_broken_candle_is_counted_once_and_stops_nobody(world):
    async def body(w):
        await w.put(w.head(300))
        worker = w.worker()
        await worker.round()
        bad, counted = w.of("EUR_USD").slice(300, 1).with_columns(high=pl.lit(0.5)), REGIME_REJECTED.labels("EUR_USD", "broken")
        before = counted._value.get()
        await put_candles(w.live, "EUR_USD", "M1", bad)
        assert [await worker.round(), await worker.round()] == [0, 0]
        await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").slice(301, 3))
        await put_candles(w.live, "USD_JPY", "M1", w.of("USD_JPY").slice(300, 4))
        assert await worker.round() == 7
        assert counted._value.get() == before + 1
        await w.check(worker, pl.concat([w.of("EUR_USD").head(304).filter(pl.col("time") != bad["time"][0]), w.of("USD_JPY").head(304)]))
    world.run(body)


# -- fallback ------------------------------------------------------------------------------------------------------------------------

ANXIOUS = GateSettings(stride=1, hazard_max=0.45, fallback_multiplier=1.0, warmup_samples=0)  # every second gate asks for a person
ALWAYS = GateSettings(stride=1, hazard_max=0.01, fallback_multiplier=1.0, warmup_samples=0)  # every gate does


def asked(gates):
    return [HAZARD_FALLBACK in r for r in gates["reasons"].to_list()]


def test_three_fallbacks_in_a_row_call_once(world):
    async def body(w):
        calls = []
        gates = build_gates(w.of("EUR_USD"), ANXIOUS)
        marks = asked(gates)
        start = next(i for i in range(5, len(marks)) if not marks[i - 1] and all(marks[i:i + 4]))
        first = w.of("EUR_USD").height - len(marks)
        worker = w.worker(gates=ANXIOUS, on_fallback=lambda name, gate: calls.append((name, gate.ts_ms)))
        await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").head(first + start))
        w.now = int(w.of("EUR_USD")["time"].dt.epoch("ms")[first + start]) + 60_000
        await worker.round()
        after = []
        for i in range(4):
            await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").slice(first + start + i, 1))
            await worker.round()
            after.append(len(calls))
        assert after == [0, 0, 1, 1]
        assert calls == [("EUR_USD", int(gates["time"].dt.epoch("ms")[start + 2]))]
    world.run(body)


def test_a_call_that_fails_is_made_again(world):
    async def body(w):
        calls = []

        async def tell(name, gate):
            calls.append(name)
            if len(calls) < 3:
                raise RuntimeError("ledger down")
        worker = w.worker(gates=ALWAYS, on_fallback=tell)
        await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").head(100))
        w.now = int(w.of("EUR_USD")["time"].dt.epoch("ms")[99]) + 60_000
        await worker.round()
        await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").slice(100, 1))
        for _ in range(5):
            await worker.round()
        return calls
    assert world.run(body) == ["EUR_USD"]*3


def test_old_fallbacks_call_nobody(world):
    async def body(w):
        calls = []
        await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").head(300))
        worker = w.worker(gates=ANXIOUS, on_fallback=lambda *a: calls.append(a))
        await worker.round()
        w.now += 3_600_000
        await put_candles(w.live, "EUR_USD", "M1", w.of("EUR_USD").slice(300, 300))
        await worker.round()
        return calls
    assert world.run(body) == []


# -- the running worker --------------------------------------------------------------------------------------------------------------


async def until(what, wait_s=20.0):
    end = time.monotonic() + wait_s
    while not (said := await what()):
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.02)
    return said


def test_it_wakes_when_a_candle_comes_and_ends_when_told(world):
    async def body(w):
        w.settings = w.settings.model_copy(update={"regime_loop_s": 30.0})
        await w.put(w.head(300))
        worker, stop = w.worker(), asyncio.Event()
        task = asyncio.create_task(worker.run(stop))

        def has(row):
            async def asked():
                gates = [await last_gate(w.live, p) for p in PAIRS]
                return all(g and g.ts_ms == int(w.of(p)["time"].dt.epoch("ms")[row]) for g, p in zip(gates, PAIRS))
            return asked
        await until(has(299))
        await asyncio.sleep(0.3)
        for i in range(300, 305):
            began = time.monotonic()
            await w.put(w.cut(i, i + 1))
            await until(has(i))
            assert time.monotonic() - began < 2
        stop.set()
        await asyncio.wait_for(task, 10)
        assert await w.live.redis.exists(*[w.live.key(engine_key(p)) for p in PAIRS]) == 2
    world.run(body)


@pytest.fixture
def mortal():
    """A Valkey of this test's own, in a folder that survives it."""
    folder = Path("/tmp") / f"deskbook-tests-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    with start_valkey(folder=folder) as server:
        yield server
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("lost", [False, True])
def test_valkey_killed_and_revived(tmp_path, market, mortal, lost):
    """With what it held, or without: a streamer goes on, and so does the worker."""
    w = World(mortal.url, "t:", tmp_path / "lake", market, regime_loop_s=0.05)

    async def body(w):
        w.lake.write_candles(w.head(WARM), "sim")
        worker, stop = w.worker(), asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        await w.put(w.cut(WARM - 100, WARM + 20))
        await until(lambda: last_gate(w.live, "USD_JPY"))
        os.kill(mortal.pid, signal.SIGKILL)
        await asyncio.sleep(0.5)
        with pytest.raises(LiveUnavailable):
            await worker.round()
        await asyncio.to_thread(mortal.revive)
        if lost:
            await w.flush()
        w.lake.write_candles(w.head(WARM + 20), "sim")
        await w.put(w.cut(WARM - 100, WARM + 25))
        async def complete():
            return [(await last_gate(w.live, p) or None) and (await last_gate(w.live, p)).ts_ms for p in PAIRS] == [int(w.of(p)["time"].dt.epoch("ms")[WARM + 24]) for p in PAIRS]
        await until(complete)
        assert not task.done()
        await w.check(worker, w.head(WARM + 25))
        stop.set()
        await asyncio.wait_for(task, 10)
    w.run(body)


def test_the_environment_sets_the_gates(monkeypatch):
    monkeypatch.setenv("REGIME_WINDOW_CANDLES", "60")
    monkeypatch.setenv("REGIME_HAZARD_PERCENTILE", "0.8")
    monkeypatch.setenv("REGIME_ADMIT_REGIMES", "trend_bull, trend_bear")
    made = live_gate_settings(Settings())
    assert (made.window, made.hazard_percentile, made.admit_regimes, made.stride) == (60, 0.8, ("trend_bull", "trend_bear"), 1)
